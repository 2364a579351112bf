"""The gradients of attention to a cache that new tokens are appended to: those of each entry alone, taken apart.

What nobody reads, because it is free or written over, gets zeros. Letters as in caches.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.reference.attention_vjp import attention_vjp
from qkverify.reference.caches import appended
from qkverify.reference.sizes import Array


def taken_apart(alone: Sequence[Mapping[str, Array]], lengths: Array, room: int) -> dict[str, Array]:
    """From the gradients of each entry, (1,G,n+Q,.), those of its new tokens (B,G,Q,.) and of its cache (B,G,M,.)."""
    gradients = {"query": np.concatenate([of_entry["query"] for of_entry in alone])}  # (B,H,Q,D)
    for name in ("key", "value"):
        new, held = [], []
        for of_entry, n in zip(alone, lengths, strict=True):
            every = of_entry[name]  # (1,G,n+Q,.)
            unread = np.zeros((*every.shape[:2], room - n, every.shape[3]))  # (1,G,M-n,.)
            new.append(every[:, :, n:])  # (1,G,Q,.)
            held.append(np.concatenate([every[:, :, :n], unread], axis=2))  # (1,G,M,.)
        gradients |= {name: np.concatenate(new), f"{name}_cache": np.concatenate(held)}
    return gradients


def cached_vjp(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array,
    upstream: Array, **options: Any,
) -> dict[str, Array]:  # fmt: skip
    """The gradients of sum(upstream * output), upstream (B,H,Q,E), by name; of the caches as they were before."""
    rows = zip(appended(key_cache, key, lengths), appended(value_cache, value, lengths), strict=True)
    alone = [
        attention_vjp(query[b : b + 1], k, v, upstream[b : b + 1], causal=True, **options)
        for b, (k, v) in enumerate(rows)
    ]
    return taken_apart(alone, lengths, key_cache.shape[2])
