"""Caches of more than one part at its largest, which the laws' short sequences do not fill."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.implementations.numpy_decode import cached_attention, paged_attention, paged_attention_vjp
from qkverify.implementations.numpy_decode.sequence import PART, Options, attend, held

LENGTHS = np.array([2 * PART.stop + 90, 3 * PART.stop], np.uint32)
QUERIES, ROWS = 2, 64  # new tokens; rows of a page


@pytest.fixture
def sequences() -> dict[str, np.ndarray]:
    """Queries of zeros give every key the same weight, so that an output is a mean of whole numbers: exact."""
    rng, longest = np.random.default_rng(0), int(LENGTHS.max())
    return {
        "query": np.zeros((2, 4, QUERIES, 3)), "key": rng.standard_normal((2, 2, longest, 3)),
        "value": rng.integers(-9, 9, (2, 2, longest, 5)).astype(float), "sinks": np.array([0.0, -np.inf, 0.0, 0.0]),
    }  # fmt: skip


def means(value: np.ndarray, sinks: np.ndarray, left: int | None) -> np.ndarray:
    """The mean of what each query sees; a sink of 0 is one more key, of value 0."""
    place, at = (
        LENGTHS.astype(int)[:, None, None] - QUERIES + np.arange(QUERIES)[:, None],
        np.arange(value.shape[2]),
    )
    seen = ((at <= place) & (at >= place - (value.shape[2] if left is None else left)))[:, None]  # (B,1,Q,K)
    count = seen.sum(axis=-1, keepdims=True) + np.exp(sinks)[:, None, None]
    return (seen @ np.repeat(value, 2, axis=1)) / count


@pytest.mark.parametrize("left", [None, 700, PART.stop + 5])
def test_a_long_cache_is_read_to_its_end_and_no_further(
    sequences: dict[str, np.ndarray], left: int | None
) -> None:
    query, key, value, sinks = (sequences[name] for name in ("query", "key", "value", "sinks"))
    expected = means(value, sinks, left)
    window = None if left is None else (left, None)
    caches, before = [], LENGTHS.astype(int) - QUERIES
    new = [np.stack([x[b, :, n : n + QUERIES] for b, n in enumerate(before)]) for x in (key, value)]
    for x in (key, value):
        cache = np.full((*x.shape[:2], x.shape[2] + 7, x.shape[3]), np.nan)
        for b, n in enumerate(before):
            cache[b, :, :n] = x[b, :, :n]
        caches.append(cache)
    output = cached_attention(query, *new, *caches, before, window=window, sinks=sinks)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("left", [None, 700])
def test_pages_of_a_part_are_those_of_its_keys(sequences: dict[str, np.ndarray], left: int | None) -> None:
    query, sinks = sequences["query"], sequences["sinks"]
    pools, table = paged(sequences["key"], sequences["value"])
    window = None if left is None else (left, None)
    output = paged_attention(query, *pools, table, LENGTHS, window=window, sinks=sinks)
    np.testing.assert_array_equal(output, means(sequences["value"], sinks, left))
    ones = np.ones_like(output)
    _, d_key_pages, d_value_pages = paged_attention_vjp(query, *pools, table, LENGTHS, ones, window=window)
    assert not d_key_pages.any()  # of queries of zeros
    seen = d_value_pages[table].reshape(2, -1, 2, 5).any(axis=(2, 3)).sum(axis=1)
    expected = LENGTHS if left is None else np.full(2, left + QUERIES)
    np.testing.assert_array_equal(seen, expected)


def paged(*arrays: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """(B,G,K,.) in pages, in a random order: the pools (N,P,G,.) and the table (B,.)."""
    entries, pages = arrays[0].shape[0], -(-arrays[0].shape[2] // ROWS)
    table = np.random.default_rng(1).permutation(entries * pages).astype(np.uint16).reshape(entries, pages)
    pools = []
    for x in arrays:
        whole = np.full((entries, x.shape[1], pages * ROWS, x.shape[3]), np.nan)
        whole[:, :, : x.shape[2]] = x
        pool = np.empty((entries * pages, ROWS, x.shape[1], x.shape[3]))
        pool[table] = whole.transpose(0, 2, 1, 3).reshape(entries, pages, ROWS, x.shape[1], x.shape[3])
        pools.append(pool)
    return pools, table


def test_parts_before_a_window_are_not_read() -> None:
    key, value = np.full((1, 4 * PART.stop, 2), np.nan), np.full((1, 4 * PART.stop, 2), np.nan)
    key[:, -PART.stop :] = value[:, -PART.stop :] = 1
    options = Options(causal=True, window=(PART.stop - 1, None))
    output, *_ = attend(np.ones((2, 1, 2)), held(key, value), options)
    np.testing.assert_array_equal(output, np.ones((2, 1, 2)))
