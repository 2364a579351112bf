"""Packed sequences, caches and pages: the right rows of the wrong sequence, the right slot of the wrong step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from qkverify.implementations import numpy_decode as correct
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.numpy_decode.sequence import scale_of

Array = np.ndarray
TILE, OTHER_TILE = 4, 8  # what the kernel really uses, and the default of a helper that was not told


def padded(starts: Array, tile: int) -> Array:
    """Where each sequence begins in a work buffer that gives every sequence whole tiles."""
    return (np.asarray(starts) + np.arange(len(starts)) * tile) // tile * tile


def _packed_vjp(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, upstream: Array, *,
    causal: bool = False, scale: float | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    starts = query_starts, key_starts
    d_query, d_key, d_value = correct.packed_attention_vjp(
        query, key, value, *starts, upstream, causal=causal, scale=scale
    )
    work = np.zeros((len(query) + len(query_starts) * OTHER_TILE, *query.shape[1:]), query.dtype)
    written, read = (
        padded(query_starts, TILE),
        padded(query_starts, OTHER_TILE),
    )  # right: both with the kernel's own tile
    spans = list(pairwise(query_starts))
    for (a, b), at in zip(spans, written, strict=False):
        work[at : at + b - a] = d_query[a:b]
    gathered = [work[at : at + b - a] for (a, b), at in zip(spans, read, strict=False)]
    return np.concatenate(gathered), d_key, d_value


@mutant("B046", operation="packed_attention", evidence="stated", vjp=_packed_vjp,
        threads="Dao-AILab/flash-attention#2337 Dao-AILab/flash-attention#2333")  # fmt: skip
def packed_offsets_use_another_tile(
    query: Array, key: Array, value: Array, query_starts: Array, key_starts: Array, *,
    causal: bool = False, scale: float | None = None,
) -> Array:  # fmt: skip
    """The padded offsets of packed sequences are written for one tile size and read for another: wrong dQ after the first."""
    return correct.packed_attention(query, key, value, query_starts, key_starts, causal=causal, scale=scale)


@mutant("B102", operation="packed_attention", evidence="partly", threads="NVIDIA/TransformerEngine#3331")
def last_sequence_is_taken_as_full(
    query: Array,
    key: Array,
    value: Array,
    query_starts: Array,
    key_starts: Array,
    *,
    scale: float | None = None,
) -> Array:
    """Whether sequences differ in length is decided without the last one: a batch that is short only there counts as even."""
    lengths = np.diff(key_starts)
    if len(lengths) > 1 and (lengths[:-1] == lengths[0]).all():  # right: lengths
        key_starts = np.minimum(np.arange(len(lengths) + 1) * lengths[0], len(key))
    return correct.packed_attention(query, key, value, query_starts, key_starts, scale=scale)


@mutant(
    "B106",
    operation="cached_attention",
    evidence="stated",
    threads="microsoft/onnxruntime-genai#2354",
    masked_values="read",
)
def slot_is_one_too_far(
    query: Array,
    key: Array,
    value: Array,
    key_cache: Array,
    value_cache: Array,
    lengths: Array,
    *,
    scale: float | None = None,
) -> Array:
    """While decoding, the length already counts the new token: it is written one slot further, over the slot that is read."""
    shift = int(query.shape[2] == 1 and key_cache.shape[2] > lengths.max() + 1)  # right: 0
    rows = np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    for b, length in enumerate(lengths):
        end = length + key.shape[2]
        key_cache[b, :, length + shift : end + shift], value_cache[b, :, length + shift : end + shift] = (
            key[b],
            value[b],
        )
        held = correct.held(key_cache[b, :, :end], value_cache[b, :, :end])
        rows[b] = correct.attend(query[b], held, correct.Options(True, scale))[0]
    return rows


@mutant(
    "B107", operation="cached_attention", evidence="stated", threads="skyzh/tiny-llm#46", masked_values="read"
)
def offset_counts_heads(
    query: Array,
    key: Array,
    value: Array,
    key_cache: Array,
    value_cache: Array,
    lengths: Array,
    *,
    scale: float | None = None,
) -> Array:
    """The offset of a query in the sequence is taken from the axis of heads instead of the axis of tokens."""
    rows = np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    for b, length in enumerate(lengths):
        end, fresh = length + key.shape[2], query.shape[1]  # right: query.shape[2]
        key_cache[b, :, length:end], value_cache[b, :, length:end] = key[b], value[b]
        seen = np.arange(end) <= (end - fresh + np.arange(query.shape[2]))[:, None]
        rows[b] = masked(query[b], key_cache[b, :, :end], value_cache[b, :, :end], seen, scale)
    return rows


@mutant("B107", operation="cached_attention", evidence="stated",
        threads="fla-org/flash-linear-attention#766 fla-org/flash-linear-attention#126",
        masked_values="read")  # fmt: skip
def entries_share_one_counter(
    query: Array,
    key: Array,
    value: Array,
    key_cache: Array,
    value_cache: Array,
    lengths: Array,
    *,
    scale: float | None = None,
) -> Array:
    """One counter of tokens serves all: every entry after the first is written and read at the first one's length."""
    return correct.cached_attention(
        query, key, value, key_cache, value_cache, np.full_like(lengths, lengths[0]), scale=scale
    )  # right: lengths


@mutant(
    "B107",
    operation="cached_attention",
    evidence="stated",
    threads="fla-org/flash-linear-attention#766",
    masked_values="read",
)
def prompt_is_counted_again(
    query: Array,
    key: Array,
    value: Array,
    key_cache: Array,
    value_cache: Array,
    lengths: Array,
    *,
    scale: float | None = None,
) -> Array:
    """A chunk sees as many tokens before it as it has itself, twice: its queries stand too late and see their future."""
    rows = np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    for b, length in enumerate(lengths):
        end = length + key.shape[2]
        key_cache[b, :, length:end], value_cache[b, :, length:end] = key[b], value[b]
        start = length + (query.shape[2] if query.shape[2] > 1 else 0)  # right: length
        seen = np.arange(end) <= (start + np.arange(query.shape[2]))[:, None]
        rows[b] = masked(query[b], key_cache[b, :, :end], value_cache[b, :, :end], seen, scale)
    return rows


@mutant("P001", operation="paged_attention", evidence="inferred", masked_values="read")
def last_page_is_read_whole(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    page_table: Array,
    lengths: Array,
    *,
    scale: float | None = None,
) -> Array:
    """The length is rounded up to whole pages: what stands in the rest of the last page takes weight."""
    rows = key_pages.shape[1]
    whole = np.minimum(-(-lengths // rows) * rows, page_table.shape[1] * rows)
    output = np.zeros((*query.shape[:3], value_pages.shape[3]), query.dtype)
    for b, length in enumerate(lengths):
        pages = page_table[b, : -(-length // rows)]
        key, value = (
            pool[pages].reshape(-1, *pool.shape[2:]).swapaxes(0, 1) for pool in (key_pages, value_pages)
        )
        place = length - query.shape[2] + np.arange(query.shape[2])
        seen = (np.arange(key.shape[1]) <= place[:, None]) | (
            np.arange(key.shape[1]) >= length
        )  # right: without the second half
        output[b] = masked(query[b], key[:, : whole[b]], value[:, : whole[b]], seen[:, : whole[b]], scale)
    return output


@mutant("P002", operation="paged_attention", evidence="inferred", masked_values="read")
def pages_are_read_in_the_order_of_the_pool(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    page_table: Array,
    lengths: Array,
    *,
    scale: float | None = None,
) -> Array:
    """The pages of an entry are gathered in the order in which they lie instead of the order of its table."""
    rows, sorted_table = key_pages.shape[1], page_table.copy()
    for entry, length in zip(sorted_table, lengths, strict=True):
        entry[: -(-length // rows)].sort()  # right: as it is
    return correct.paged_attention(query, key_pages, value_pages, sorted_table, lengths, scale=scale)


def masked(query: Array, key: Array, value: Array, seen: Array, scale: float | None) -> Array:
    """One entry, (H,Q,D), (G,K,D), (G,K,E), seen (Q,K) -> (H,Q,E)."""
    group = query.shape[0] // key.shape[0]
    key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)
    scores = np.where(seen, query @ key.swapaxes(1, 2) * scale_of(query, scale), -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ value


@mutant("P003", operation="packed_attention", evidence="inferred", masked_values="read")
def first_key_of_the_next_is_seen(
    query: Array,
    key: Array,
    value: Array,
    query_starts: Array,
    key_starts: Array,
    *,
    scale: float | None = None,
) -> Array:
    """The end of a sequence is taken to be its own: the first key of the next one takes weight."""
    output = np.zeros((*query.shape[:2], value.shape[2]), query.dtype)
    for q, k in correct.pieces(query_starts, key_starts):
        wide = slice(k.start, min(k.stop + 1, len(key)))  # right: k
        rows, keys, values = correct.heads_first(query[q], key[wide], value[wide])
        options = correct.Options(scale=scale)
        output[q] = correct.attend(rows, correct.held(keys, values), options)[0].swapaxes(0, 1)
    return output
