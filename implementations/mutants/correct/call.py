"""One attention call as an object, so that a step of it can be replaced without repeating fourteen arguments.

B batch, H query heads, G key/value heads, Q query length, K key length, D key size, E value size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Call:
    query: np.ndarray  # (B, H, Q, D)
    key: np.ndarray  # (B, G, K, D)
    value: np.ndarray  # (B, G, K, E)
    mask: np.ndarray | None = None
    bias: np.ndarray | None = None
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    scale: float | None = None
    softcap: float | None = None
    alibi_slopes: np.ndarray | None = None
    key_lengths: np.ndarray | None = None
    sinks: np.ndarray | None = None
    return_lse: bool = False

    B = property(lambda self: self.query.shape[0])
    H = property(lambda self: self.query.shape[1])
    G = property(lambda self: self.key.shape[1])
    Q = property(lambda self: self.query.shape[2])
    K = property(lambda self: self.key.shape[2])
    D = property(lambda self: self.query.shape[3])
    E = property(lambda self: self.value.shape[3])
    dtype = property(lambda self: self.query.dtype)
    group = property(lambda self: self.H // max(self.G, 1))

    @property
    def rows(self) -> np.ndarray:
        """(Q, 1): the key that stands at the place of each query, aligned bottom-right."""
        return np.arange(self.Q)[:, None] + (self.K - self.Q)

    @property
    def columns(self) -> np.ndarray:
        """(K,): the place of each key."""
        return np.arange(self.K)

    def but(self, **changes: Any) -> Call:
        """The same call with some arguments changed."""
        return dataclasses.replace(self, **changes)


def uninitialised(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that nobody wrote: 7 everywhere, since the zeros that np.empty often gives would hide it."""
    return np.full(shape, 7, dtype)
