"""Attention as servers need it, written plainly: sequences packed after one another, a cache that grows, a
cache in pages.

Dimension letters as in numpy_textbook; T and S are the query and key rows of all sequences together, M the
room in a cache, N pages of P rows. A window is (left, right), None = unbounded; slopes and sinks are (H,).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify import implementation

Array = np.ndarray
Window = tuple[int | None, int | None]
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
    for q, k in pieces(query_starts, key_starts):
        rows = attend(
            *heads_first(query[q], key[k], value[k]), causal, scale, softcap, window, alibi_slopes, sinks
        )
        output[q] = rows[0].swapaxes(0, 1)
    return output


def packed_attention_vjp(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, upstream: Array, *,
    causal: bool = False, window: Window | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients of sum(upstream * packed_attention(...)), upstream (T,H,E), in the shapes of the inputs."""
    gradients = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    for q, k in pieces(query_starts, key_starts):
        given = heads_first(query[q], key[k], value[k], upstream[q])
        rows = pull(*given, causal, scale, softcap, window, alibi_slopes, sinks)
        for gradient, place, d_rows in zip(gradients, (q, k, k), rows, strict=True):
            gradient[place] = d_rows.swapaxes(0, 1)
    return gradients


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
    for b, length in enumerate(lengths):
        end = int(length) + key.shape[2]
        key_cache[b, :, length:end], value_cache[b, :, length:end] = key[b], value[b]
        held = key_cache[b, :, :end], value_cache[b, :, :end]
        output[b] = attend(query[b], *held, True, scale, softcap, window, alibi_slopes, sinks)[0]
    return output


def cached_attention_vjp(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array,
    upstream: Array, *, window: Window | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    """The gradients by query, key, value and both caches as they were before the call; upstream (B,H,Q,E)."""
    gradients = tuple(np.zeros_like(x) for x in (query, key, value, key_cache, value_cache))
    d_query, *d_new_and_held = gradients
    for b, n in enumerate(lengths.astype(int)):
        pairs = ((key_cache, key), (value_cache, value))
        kept = (np.concatenate([cache[b, :, :n], new[b]], axis=1) for cache, new in pairs)
        d_query[b], *d_kept = pull(
            query[b], *kept, upstream[b], True, scale, softcap, window, alibi_slopes, sinks
        )
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
    for b, length in enumerate(lengths):
        pages = page_table[b, : -(-int(length) // key_pages.shape[1])]
        key, value = (
            pool[pages].reshape(-1, *pool.shape[2:])[:length].swapaxes(0, 1)
            for pool in (key_pages, value_pages)
        )
        output[b] = attend(query[b], key, value, True, scale, softcap, window, alibi_slopes, sinks)[0]
    return output


def paged_attention_vjp(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, upstream: Array, *,
    window: Window | None = None, scale: float | None = None, softcap: float | None = None,
    alibi_slopes: Array | None = None, sinks: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients by query and both pools of pages, where a page that several entries have gets the sum."""
    d_query, rows = np.zeros_like(query), key_pages.shape[1]
    pools = [pool.reshape(-1, *pool.shape[2:]) for pool in (key_pages, value_pages)]
    d_pools = [np.zeros_like(pool) for pool in pools]
    for b, length in enumerate(lengths.astype(int)):
        at = np.arange(length)
        place = page_table[b].astype(int)[at // rows] * rows + at % rows
        held = heads_first(*(pool[place] for pool in pools))
        d_query[b], *d_held = pull(
            query[b], *held, upstream[b], True, scale, softcap, window, alibi_slopes, sinks
        )
        for d_pool, gradient in zip(d_pools, d_held, strict=True):
            np.add.at(d_pool, place, gradient.swapaxes(0, 1))
    return d_query, d_pools[0].reshape(key_pages.shape), d_pools[1].reshape(value_pages.shape)


def pieces(query_starts: Array, key_starts: Array) -> list[tuple[slice, slice]]:
    """The rows of each sequence."""
    bounds = zip(query_starts, query_starts[1:], key_starts, key_starts[1:], strict=False)
    return [(slice(a, b), slice(c, d)) for a, b, c, d in bounds]


def heads_first(*arrays: Array) -> list[Array]:
    return [array.swapaxes(0, 1) for array in arrays]


def attend(query: Array, key: Array, value: Array, causal: bool, scale: float | None, softcap: float | None,
           window: Window | None = None, alibi_slopes: Array | None = None,
           sinks: Array | None = None) -> tuple[Array, Array, Array]:  # fmt: skip
    """One sequence, (H,Q,D), (G,K,D), (G,K,E): the output (H,Q,E), the weights (H,Q,K) and the scores before capping."""
    group, (queries, keys) = query.shape[0] // max(key.shape[0], 1), (query.shape[1], key.shape[1])
    key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)
    scores = query @ key.swapaxes(1, 2) * scale_of(query, scale)
    logits = scores if softcap is None else softcap * np.tanh(scores / softcap)
    ahead = np.arange(keys) - np.arange(keys - queries, keys)[:, None]
    if alibi_slopes is not None:
        logits = logits - alibi_slopes.astype(logits.dtype)[:, None, None] * np.abs(ahead).astype(
            logits.dtype
        )
    logits = np.where(hidden(ahead, causal, window), -np.inf, logits)
    sink = np.full((len(query), 1, 1), -np.inf) if sinks is None else sinks[:, None, None]
    top = np.maximum(logits.max(axis=-1, keepdims=True, initial=-np.inf), sink.astype(logits.dtype))
    top = np.where(np.isneginf(top), 0, top)
    weights = np.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(sink.astype(logits.dtype) - top)
    weights = weights / np.where(total == 0, 1, total)
    return weights @ value, weights, scores


def hidden(ahead: Array, causal: bool, window: Window | None) -> Array:
    """Which keys, so far ahead of a query, it does not see: (Q,K)."""
    left, right = window or (None, None)
    none = np.zeros(ahead.shape, bool)
    return (none | (ahead > 0 if causal else False) | (ahead < -left if left is not None else False)
            | (ahead > right if right is not None else False))  # fmt: skip


def pull(query: Array, key: Array, value: Array, upstream: Array, causal: bool, scale: float | None,
         softcap: float | None, *others: Any) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients of one sequence, each in the shape of its argument; `others` as in `attend`."""
    group, shared = query.shape[0] // max(key.shape[0], 1), key.shape
    _, weights, scores = attend(query, key, value, causal, scale, softcap, *others)
    key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)
    d_weights = upstream @ value.swapaxes(1, 2)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    if softcap is not None:
        d_logits = d_logits * (1 - np.tanh(scores / softcap) ** 2)
    d_scores = d_logits * scale_of(query, scale)
    d_key, d_value = d_scores.swapaxes(1, 2) @ query, weights.swapaxes(1, 2) @ upstream
    return d_scores @ key, summed(d_key, shared[0], group), summed(d_value, shared[0], group)


def summed(gradient: Array, shared: int, group: int) -> Array:
    """(H,K,.) -> (G,K,.): over the query heads that share a key head."""
    return gradient.reshape(shared, group, *gradient.shape[1:]).sum(axis=1)


def scale_of(query: Array, scale: float | None) -> float:
    return max(query.shape[2], 1) ** -0.5 if scale is None else float(scale)
