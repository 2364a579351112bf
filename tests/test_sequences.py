"""Several sequences in one call are laid out so that each can be found again."""

from __future__ import annotations

import numpy as np

from qkverify.problems import Problem
from qkverify.sequences import Sequences


def sequence(queries, keys, first):
    """Two heads on one key head; every row holds its own number."""
    query = np.arange(first, first + 2 * queries, dtype=np.float64).reshape(1, 2, queries, 1)
    key = np.arange(first, first + keys, dtype=np.float64).reshape(1, 1, keys, 1)
    return Problem(query=query, key=key, value=2 * key)


GIVEN = Sequences((sequence(2, 3, 10), sequence(1, 2, 50)), {})


def test_packed_rows_stand_after_one_another_and_come_back():
    rows = GIVEN.packed("query")
    assert rows.shape == (3, 2, 1)
    assert GIVEN.starts("Q").tolist() == [0, 2, 3]
    assert GIVEN.starts("K").tolist() == [0, 3, 5]
    for back, problem in zip(GIVEN.unpacked(rows), GIVEN.problems, strict=True):
        np.testing.assert_array_equal(back, problem.query)


def test_a_cache_holds_every_key_and_the_filler_behind_them():
    cache = GIVEN.in_rooms("key", 4, -1.0)
    assert cache[:, 0, :, 0].tolist() == [[10, 11, 12, -1], [50, 51, -1, -1]]


def test_pages_hold_every_key_where_the_table_says():
    table = np.array([[2, 0], [1, 0]])
    pool = GIVEN.in_pages("key", table, 3, 2, -1.0)
    assert pool[:, :, 0, 0].tolist() == [[12, -1], [50, 51], [10, 11]]
