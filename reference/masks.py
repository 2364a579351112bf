"""Which keys each query may attend to. Letters: B batch, H heads, Q queries, K keys.

Query i stands at key position i ("top-left") or i + K - Q ("bottom-right": the last query at the last key).
K is the length of the key array, also where `key_lengths` says that the sequence in it is shorter.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.sizes import Array

Window = tuple[int | None, int | None]  # keys to the left and right of the query's position, None = all


def offsets(queries: int, keys: int, causal_alignment: str = "bottom-right") -> Array:
    """j - i: how far key j lies after the position of query i. Integers (Q,K)."""
    start = {"top-left": 0, "bottom-right": keys - queries}[causal_alignment]
    return np.arange(keys) - (np.arange(queries)[:, None] + start)


def distance(queries: int, keys: int, causal_alignment: str = "bottom-right") -> Array:
    """|j - i|, integers (Q,K)."""
    return np.abs(offsets(queries, keys, causal_alignment))


def visible(
    batch: int, queries: int, keys: int, *, causal: bool = False, window: Window | None = None,
    mask: Array | None = None, key_lengths: Array | None = None, causal_alignment: str = "bottom-right",
) -> Array:  # fmt: skip
    """bool, broadcastable to (B,H,Q,K): True where all given conditions let the query see the key."""
    left, right = (None, None) if window is None else window
    allowed = np.ones((queries, keys), dtype=bool)  # (Q,K)
    ahead = offsets(queries, keys, causal_alignment)  # (Q,K)
    if causal:
        allowed = allowed & (ahead <= 0)
    if left is not None:
        allowed = allowed & (ahead >= -left)
    if right is not None:
        allowed = allowed & (ahead <= right)
    if key_lengths is not None:
        lengths = np.reshape(key_lengths, (batch, 1, 1, 1))
        allowed = allowed & (np.arange(keys) < lengths)  # (B,1,Q,K)
    if mask is not None:
        allowed = allowed & mask  # (B,H,Q,K)
    return allowed
