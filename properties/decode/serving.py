"""Attention as servers call it: sequences packed after one another, a cache that grows, a cache in pages.

packed_attention(query, key, value, query_starts, key_starts)      rows of all sequences: (T,H,D), (S,G,D), (S,G,E)
cached_attention(query, key, value, key_cache, value_cache, lengths)   new tokens (B,.,Q,.) are appended to (B,G,M,.)
paged_attention(query, key_pages, value_pages, page_table, lengths)    pages (N,P,G,.), queries are the last tokens

Whatever the layout, each sequence is plain attention over its own keys, with the options that all have in common. Arrays may
lie anywhere in memory: a cache is a view of a larger one, a page table a slice of a wider one.
"""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.runs.assertions import assert_identical, assert_within_bound

PACKED, CACHED, PAGED = "packed_attention", "cached_attention", "paged_attention"


CACHES, POOLS = ("key_cache", "value_cache"), ("key_pages", "value_pages")


def as_integers(array, dtype):
    """The array in another type of integers, where that can hold it."""
    assume(array.size == 0 or array.max() <= np.iinfo(dtype).max)
    return array.astype(dtype)


def assert_each_is_right(run, given, outputs):
    for i, (got, problem) in enumerate(zip(outputs, given.problems, strict=True)):
        assert_within_bound(run.within(got, run.bound(problem)[0]), run.exact(problem), what=f"sequence {i}")


INTEGERS = ("int64", "int32", "int16", "uint8")


SIGNED = INTEGERS[:3]  # of starts, whose differences would wrap where there are no negative numbers


REFUSALS = (TypeError, ValueError, RuntimeError)


def filler_of(run, poison):
    return np.nan if run.semantics["masked_values"] == "ignored" else poison


def assert_read_rows_are_right(run, gradients, exact, read):
    """Every gradient, but for the rows of a cache or of pages that nobody reads: these have a law of their own."""
    for name, got in gradients.items():
        rows = read if name in (*CACHES, *POOLS) else np.True_
        right, wanted = (np.where(rows, x, 0.0) for x in (run.within(got, exact[name]), exact[name].value))
        assert_within_bound(right, wanted, what=f"gradient of {name}")


def assert_unread_rows_get_nothing(gradients, names, read):
    for name in names:
        unread = np.where(read, 0.0, gradients[name].astype(np.float64))
        assert_identical(unread, np.zeros_like(unread), what=f"gradient of {name}")
