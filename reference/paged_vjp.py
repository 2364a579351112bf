"""The gradients of attention to pages: those of each entry alone, put back where its rows lie.

A page that several entries have gets the sum; what no entry has gets zeros. Letters as in caches.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.reference.caches import gathered
from qkverify.reference.sizes import Array


def put_back(alone: Sequence[Mapping[str, Array]], table: Array, pages: int, rows: int) -> dict[str, Array]:
    """From the gradients of each entry, (1,G,n,.), those of so many pages of so many rows, (N,P,G,.)."""
    gradients = {"query": np.concatenate([of_entry["query"] for of_entry in alone])}  # (B,H,Q,D)
    for name in ("key", "value"):
        parts: list[list[Array]] = [[] for _ in range(pages)]  # of each page
        for of_entry, entry in zip(alone, table, strict=True):
            every = np.swapaxes(of_entry[name][0], 0, 1)  # (n,G,.)
            unread = np.zeros((-every.shape[0] % rows, *every.shape[1:]))  # of the last page
            for i, page in enumerate(range(0, every.shape[0], rows)):
                parts[entry[i]].append(np.concatenate([every, unread])[page : page + rows])  # (P,G,.)
        nobody = np.zeros((rows, *alone[0][name].shape[1::2]))  # (P,G,.)
        gradients[f"{name}_pages"] = np.stack(
            [added(each) if each else nobody for each in parts]
        )  # (N,P,G,.)
    return gradients


def added(parts: list[Array]) -> Array:
    """The sum of what was stored, stored again where there was anything to add."""
    return stored(sum(parts[1:], parts[0])) if len(parts) > 1 else parts[0]


def paged_vjp(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, upstream: Array,
    **options: Any,
) -> dict[str, Array]:  # fmt: skip
    """The gradients of sum(upstream * output), upstream (B,H,Q,E), by the query and both pools of pages."""
    rows = zip(*(gathered(pages, page_table, lengths) for pages in (key_pages, value_pages)), strict=True)
    alone = [
        attention_vjp(query[b : b + 1], k, v, upstream[b : b + 1], causal=True, **options)
        for b, (k, v) in enumerate(rows)
    ]
    return put_back(alone, page_table, *key_pages.shape[:2])
