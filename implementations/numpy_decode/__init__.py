"""Attention as servers need it: sequences packed after one another, a cache that grows, a cache in pages.

Each entry is attended to by itself (`sequence`), a part of its keys after another. Nothing is copied but the pages of one part,
and query heads that share a key head read it once.

Dimension letters as in numpy_textbook; T and S are the query and key rows of all sequences together, M the
room in a cache, N pages of P rows. A window is (left, right), None = unbounded; slopes and sinks are (H,).
"""

from __future__ import annotations

import numpy as np

from qkverify import implementation
from qkverify.implementations.numpy_decode.sequence import (
    Array,
    Options,
    Pages,
    Window,
    attend,
    held,
    into,
    pull,
)

DECLARED = {"arrays": "numpy", "dtypes": ("float64", "float32"), "causal_alignment": "bottom-right",
            "empty_rows": "zero", "masked_values": "ignored", "deterministic": True}  # fmt: skip


@implementation(
    name="numpy_packed", summary="sequences of any lengths after one another, one at a time", **DECLARED
)
def packed_attention(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, *,
    causal: bool = False, window: Window | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> Array:  # fmt: skip
    """query (T,H,D), key (S,G,D), value (S,G,E); row i of sequence b is query[query_starts[b] + i] -> (T,H,E)."""
    output = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    options = Options(causal, scale, softcap, window, alibi_slopes, sinks)
    for q, k in pieces(query_starts, key_starts):
        rows, keys, values = heads_first(query[q], key[k], value[k])
        output[q] = attend(rows, held(keys, values), options)[0].swapaxes(0, 1)
    return output


def packed_attention_vjp(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, upstream: Array, *,
    causal: bool = False, window: Window | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients of sum(upstream * packed_attention(...)), upstream (T,H,E), in the shapes of the inputs."""
    d_query, d_key, d_value = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    options = Options(causal, scale, softcap, window, alibi_slopes, sinks)
    for q, k in pieces(query_starts, key_starts):
        rows, keys, values, above = heads_first(query[q], key[k], value[k], upstream[q])
        gradients = heads_first(d_key[k], d_value[k])
        d_query[q] = pull(rows, held(keys, values), above, options, into(gradients)).swapaxes(0, 1)
    return d_query, d_key, d_value


@implementation(
    name="numpy_cached", summary="a cache of keys and values that new tokens are appended to", **DECLARED
)
def cached_attention(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array, *,
    window: Window | None = None, scale: float | None = None, softcap: float | None = None,
    alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> Array:  # fmt: skip
    """query (B,H,Q,D), key (B,G,Q,D), value (B,G,Q,E) of the new tokens; caches (B,G,M,.) of lengths (B,) -> (B,H,Q,E).

    The caches are written: entry b has lengths[b] + Q tokens afterwards. Token i sees itself and all before it.
    """
    output = np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    options = Options(True, scale, softcap, window, alibi_slopes, sinks)
    for b, length in enumerate(lengths):
        end = int(length) + key.shape[2]
        key_cache[b, :, length:end], value_cache[b, :, length:end] = key[b], value[b]
        output[b] = attend(query[b], held(key_cache[b, :, :end], value_cache[b, :, :end]), options)[0]
    return output


def cached_attention_vjp(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array,
    upstream: Array, *, window: Window | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    """The gradients by query, key, value and both caches as they were before the call; upstream (B,H,Q,E)."""
    gradients = tuple(np.zeros_like(x) for x in (query, key, value, key_cache, value_cache))
    d_query, *d_new_and_held = gradients
    options = Options(True, scale, softcap, window, alibi_slopes, sinks)
    for b, n in enumerate(lengths.astype(int)):
        pairs = ((key_cache, key), (value_cache, value))
        kept = [np.concatenate([cache[b, :, :n], new[b]], axis=1) for cache, new in pairs]
        d_kept = [np.zeros_like(x) for x in kept]
        d_query[b] = pull(query[b], held(*kept), upstream[b], options, into(d_kept))
        for i, gradient in enumerate(d_kept):
            d_new_and_held[i][b], d_new_and_held[i + 2][b, :, :n] = gradient[:, n:], gradient[:, :n]
    return gradients


@implementation(name="numpy_paged", summary="a cache in pages that lie anywhere in one pool", **DECLARED)
def paged_attention(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, *,
    window: Window | None = None, scale: float | None = None, softcap: float | None = None,
    alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> Array:  # fmt: skip
    """query (B,H,Q,D), pages (N,P,G,.); page_table (B,.) holds the pages of each entry in order -> (B,H,Q,E).

    The queries are the last tokens of their sequence, which has lengths[b] tokens, their own among them.
    """
    output = np.zeros((*query.shape[:3], value_pages.shape[3]), query.dtype)
    options = Options(True, scale, softcap, window, alibi_slopes, sinks)
    for b, length in enumerate(lengths):
        pages = Pages(page_table[b], key_pages.shape[1])
        output[b] = attend(query[b], pages.held(key_pages, value_pages, int(length)), options)[0]
    return output


def paged_attention_vjp(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, upstream: Array, *,
    window: Window | None = None, scale: float | None = None, softcap: float | None = None,
    alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients by query and both pools of pages, where a page that several entries have gets the sum."""
    d_query, d_pools = np.zeros_like(query), (np.zeros_like(key_pages), np.zeros_like(value_pages))
    options = Options(True, scale, softcap, window, alibi_slopes, sinks)
    for b, length in enumerate(lengths):
        pages = Pages(page_table[b], key_pages.shape[1])

        def add(part: slice, *gradients: Array, pages: Pages = pages) -> None:
            for pool, gradient in zip(d_pools, gradients, strict=True):
                np.add.at(pool, pages.place(part), gradient.swapaxes(0, 1))

        d_query[b] = pull(
            query[b], pages.held(key_pages, value_pages, int(length)), upstream[b], options, add
        )
    return d_query, *d_pools


def pieces(query_starts: Array, key_starts: Array) -> list[tuple[slice, slice]]:
    """The rows of each sequence."""
    bounds = zip(query_starts, query_starts[1:], key_starts, key_starts[1:], strict=False)
    return [(slice(a, b), slice(c, d)) for a, b, c, d in bounds]


def heads_first(*arrays: Array) -> list[Array]:
    return [array.swapaxes(0, 1) for array in arrays]
