"""Attention to tokens that are kept: in a cache that new tokens are appended to, or in pages that lie anywhere.

Each batch entry is plain causal attention of its last tokens to all that it has. B, H, G, Q, D, E as in
attention.py; M the room of a cache, N pages of P rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.reference.attention import attention
from qkverify.reference.sizes import Array


def appended(cache: Array, new: Array, lengths: Array) -> list[Array]:
    """For each entry b the first lengths[b] rows of its cache (B,G,M,.), then its new ones (B,G,Q,.)."""
    return [
        np.concatenate([cache[b : b + 1, :, :n], new[b : b + 1]], axis=2)  # (1,G,n+Q,.)
        for b, n in enumerate(lengths)
    ]


def gathered(pages: Array, table: Array, lengths: Array) -> list[Array]:
    """For each entry the rows of its pages (N,P,G,.), in the order of its row of the table (B,.)."""
    rows = (pages[entry].reshape(-1, *pages.shape[2:])[:n] for entry, n in zip(table, lengths, strict=True))
    return [np.swapaxes(of_entry, 0, 1)[None] for of_entry in rows]  # (1,G,n,.)


def cached_attention(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array,
    **options: Any,
) -> Array:  # fmt: skip
    """query (B,H,Q,D), key (B,G,Q,D), value (B,G,Q,E) of the new tokens, caches (B,G,M,.) -> (B,H,Q,E)."""
    rows = zip(appended(key_cache, key, lengths), appended(value_cache, value, lengths), strict=True)
    return np.concatenate(
        [attention(query[b : b + 1], k, v, causal=True, **options) for b, (k, v) in enumerate(rows)]
    )  # (B,H,Q,E)


def paged_attention(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, **options: Any
) -> Array:
    """query (B,H,Q,D), the last of lengths[b] tokens; pages (N,P,G,.), page_table (B,.) -> (B,H,Q,E)."""
    rows = zip(*(gathered(pages, page_table, lengths) for pages in (key_pages, value_pages)), strict=True)
    return np.concatenate(
        [attention(query[b : b + 1], k, v, causal=True, **options) for b, (k, v) in enumerate(rows)]
    )  # (B,H,Q,E)
