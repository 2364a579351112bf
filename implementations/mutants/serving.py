"""What servers do around a pack, a cache and pages: their integers, their memory, their lengths, and options that few ask for."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations import numpy_decode as correct
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.numpy_decode.sequence import scale_of

Array = np.ndarray
PART = 64  # keys that one part of a split cache holds


def as_32_bits(integers: Array) -> Array:
    """The memory of an array of integers, read as int32: as many as there should be."""
    return np.ascontiguousarray(integers).view(np.int32)[..., : integers.shape[-1]]


@mutant("D040", operation="packed_attention", evidence="inferred", masked_values="read")
def starts_are_read_as_32_bits(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """The memory of the starts is read as 32-bit integers, though a cumulative sum gives 64-bit ones."""
    starts = as_32_bits(query_starts), as_32_bits(key_starts)  # right: as they are
    return correct.packed_attention(query, key, value, *starts, scale=scale)


@mutant("D041", operation="cached_attention", evidence="inferred", masked_values="read")
def lengths_are_read_as_32_bits(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """The memory of the lengths is read as 32-bit integers: of 64-bit ones every second is zero."""
    lengths = as_32_bits(lengths)  # right: as they are
    return correct.cached_attention(query, key, value, key_cache, value_cache, lengths, scale=scale)


@mutant("D042", operation="paged_attention", evidence="inferred", masked_values="read")
def table_is_read_as_32_bits(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """The memory of the page table is read as 32-bit integers: of 64-bit ones every second page is page 0."""
    page_table = as_32_bits(page_table)  # right: as it is
    return correct.paged_attention(query, key_pages, value_pages, page_table, lengths, scale=scale)


@mutant("D043", operation="cached_attention", evidence="inferred", masked_values="read")
def lengths_of_the_caller_are_advanced(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """The caller's lengths are advanced in place: whoever advances them too leaves a gap."""
    output = correct.cached_attention(query, key, value, key_cache, value_cache, lengths, scale=scale)
    lengths += key.shape[2]  # right: without
    return output


SHADOW: dict[str, Any] = {}


@mutant("D044", operation="cached_attention", evidence="inferred", masked_values="read")
def keys_are_kept_beside_the_cache(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """Keys in a layout of the kernel's own are kept from call to call: entries that the caller reorders are not seen."""
    caches = key_cache, value_cache
    goes_on = SHADOW.get("cache") is key_cache and np.array_equal(SHADOW["lengths"], lengths)
    kept_keys = SHADOW["keys"] if goes_on else key_cache.copy()  # right: always the copy
    output = correct.cached_attention(query, key, value, kept_keys, value_cache, lengths, scale=scale)
    correct.cached_attention(query, key, value, *caches, lengths)
    SHADOW.update(cache=key_cache, keys=kept_keys, lengths=lengths + key.shape[2])
    return output


@mutant("D045", operation="packed_attention", evidence="inferred", masked_values="read")
def window_is_shorter_in_later_sequences(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, *,
    causal: bool = False, window: tuple[int | None, int | None] | None = None,
) -> Array:  # fmt: skip
    """The left edge of the window is exclusive in every sequence but the first."""
    output = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    for b, (q, k) in enumerate(correct.pieces(query_starts, key_starts)):
        left, right = window or (None, None)
        left = left - 1 if left and b else left  # right: left
        rows, keys, values = correct.heads_first(query[q], key[k], value[k])
        options = correct.Options(causal, window=(left, right))
        output[q] = correct.attend(rows, correct.held(keys, values), options)[0].swapaxes(0, 1)
    return output


@mutant("D046", operation="cached_attention", evidence="inferred", masked_values="read")
def cache_is_flattened_before_it_is_written(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """Batch and heads become one axis before the write: of a cache that is a view, only a copy is written."""
    flat = [cache.reshape(-1, *cache.shape[2:]).reshape(cache.shape) for cache in (key_cache, value_cache)]
    return correct.cached_attention(query, key, value, *flat, lengths, scale=scale)  # right: the caches


@mutant("D047", operation="paged_attention", evidence="inferred", masked_values="read")
def parts_are_added_without_their_maxima(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """The parts of a long cache, each with a maximum of its own, are added as if they had one."""
    output = correct.paged_attention(query, key_pages, value_pages, page_table, lengths, scale=scale)
    rows, factor = key_pages.shape[1], scale_of(query, scale)
    for b, length in enumerate(lengths.astype(int)):
        if query.shape[2] > 1 or length <= PART:
            continue
        pages = page_table[b, : -(-length // rows)]
        key, value = (pool[pages].reshape(-1, *pool.shape[2:])[:length].swapaxes(0, 1)
                      for pool in (key_pages, value_pages))  # fmt: skip
        group = query.shape[1] // len(key)
        key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)
        scores = query[b] @ key.swapaxes(1, 2) * factor
        parts = [
            np.exp(x - x.max(axis=-1, keepdims=True))  # right: less the maximum of all parts
            for x in np.split(scores, range(PART, length, PART), axis=-1)
        ]
        weights = np.concatenate(parts, axis=-1)
        output[b] = weights / weights.sum(axis=-1, keepdims=True) @ value
    return output


@mutant("D048", operation="packed_attention", evidence="inferred", masked_values="read")
def evenness_is_decided_by_the_total(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """A pack counts as an even batch if it has as many rows as if all were as long as the first: others share that sum."""
    n, starts = len(query_starts) - 1, []
    for each in (query_starts, key_starts):
        even = each[-1] == n * each[1]  # right: (np.diff(each) == each[1]).all()
        starts.append(np.arange(n + 1) * each[1] if even else each)
    return correct.packed_attention(query, key, value, *starts, scale=scale)


@mutant("D049", operation="packed_attention", evidence="inferred", masked_values="read")
def distances_are_those_of_the_pack(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, *,
    alibi_slopes: Array | None = None,
) -> Array:  # fmt: skip
    """ALiBi's distances are those of the rows in the pack: where queries and keys differ in number, they are off."""
    output = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    for q, k in correct.pieces(query_starts, key_starts):
        sequence = correct.heads_first(query[q], key[k], value[k])
        if alibi_slopes is None or k.start == q.start:  # right: always
            rows, *held = sequence
            options = correct.Options(alibi_slopes=alibi_slopes)
            output[q] = correct.attend(rows, correct.held(*held), options)[0].swapaxes(0, 1)
            continue
        apart = np.abs(np.arange(k.start, k.stop) - np.arange(q.start, q.stop)[:, None])  # (Q,K)
        output[q] = np.stack(
            [with_bias(*sequence, h, -slope * apart) for h, slope in enumerate(alibi_slopes)], axis=1
        )
    return output


def with_bias(query: Array, key: Array, value: Array, head: int, bias: Array) -> Array:
    """One query head of a sequence, (Q,E), with a bias (Q,K)."""
    shared = head * len(key) // len(query)
    scores = query[head] @ key[shared].T * scale_of(query, None) + bias.astype(query.dtype)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ value[shared]


@mutant("D050", operation="packed_attention", evidence="inferred", masked_values="read")
def scale_of_zero_is_no_scale(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, *,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """`scale or default`: a scale of zero counts as none."""
    starts = query_starts, key_starts
    return correct.packed_attention(query, key, value, *starts, scale=scale or None)  # right: scale


@mutant("D051", operation="paged_attention", evidence="inferred", masked_values="read")
def sinks_are_those_of_the_next_head(
    query: Array, key_pages: Array, value_pages: Array, page_table: Array, lengths: Array, *,
    sinks: Array | None = None,
) -> Array:  # fmt: skip
    """While one token is decoded, every head takes the sink of its neighbour."""
    if sinks is not None and query.shape[2] == 1:
        sinks = np.roll(sinks, 1)  # right: as they are
    return correct.paged_attention(query, key_pages, value_pages, page_table, lengths, sinks=sinks)
