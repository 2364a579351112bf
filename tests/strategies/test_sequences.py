"""Several sequences in one call are laid out so that each can be found again."""

from __future__ import annotations

import json

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase

from qkverify.contract import describe
from qkverify.counterexamples import store
from qkverify.problem.attention_problem import LAYOUTS, Problem
from qkverify.runs.framework_adapter import copied
from qkverify.runs.run import Run
from qkverify.strategies.attention_problems import STRIDED
from qkverify.strategies.sequences import PAIRS, PLACED, SCALES, SHARED, Sequences, sequences


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


def drawn(count, **limits):
    """So many examples of the strategy, outside of a run: every option may be in use."""
    examples = []

    @hypothesis.settings(max_examples=count, database=None, phases=(Phase.generate,), deadline=None)
    @hypothesis.given(sequences(**limits))
    def collect(value):
        examples.append(value)

    collect()
    return examples


MANY = drawn(600, empty=True)


@pytest.mark.parametrize("name", SHARED)
def test_every_option_is_drawn_in_about_half_of_the_examples(name):
    assert 200 < sum(name in given.options for given in MANY) < 400
    for given in MANY:
        for problem in given.problems:
            assert set(problem.options) == set(given.options)


def test_scales_are_zero_and_negative_too():
    assert {given.options["scale"] for given in MANY if "scale" in given.options} == set(SCALES)


def test_every_argument_lies_everywhere_and_in_half_of_the_examples_nothing_does():
    assert 200 < sum(not given.layouts for given in MANY) < 400
    for name in PLACED:
        assert {given.layouts[name] for given in MANY if name in given.layouts} == set(STRIDED)


@pytest.mark.parametrize(("queries", "longest"), [("any", 1025), ("last", 1025), ("keys", 129)])
def test_one_sequence_is_long_beyond_the_parts_of_a_split_cache(queries, longest):
    many = MANY if queries == "any" else drawn(600, queries=queries, causal=True)
    lengths = [problem.sizes["K"] for given in many for problem in given.problems]
    assert {64, 65, 127, 129} <= set(lengths)
    assert max(lengths) == longest
    assert np.mean(np.array(lengths) > 33) < 0.2
    for problem in (problem for given in many for problem in given.problems):
        s = problem.sizes
        assert s["H"] * s["Q"] * s["K"] <= max(3 * PAIRS, 33 * 33 * 6, 6 * 1025)
        assert queries == "any" or s["Q"] <= s["K"]


def test_ragged_lengths_have_the_sum_of_even_ones():
    def looks_even(given):
        keys, rows = given.lengths(), np.diff(given.starts("Q"))
        return len(set(keys)) > 1 and keys.sum() == len(keys) * keys[0] and len(set(rows)) == 1

    assert sum(looks_even(given) for given in MANY) >= 6


def test_sequences_that_are_alike_have_one_length():
    for given in drawn(100, queries="keys", causal=True, alike=True):
        assert len({problem.sizes["K"] for problem in given.problems}) == 1
        assert all(problem.causal for problem in given.problems)
        assert "causal" not in given.options


def test_others_keep_options_and_places():
    given = Sequences(GIVEN.problems, {"scale": 2.0}, {"key_cache": "heads after length"})
    turned = given.of(given.problems[::-1])
    assert turned.lengths().tolist() == [2, 3]
    assert turned.options == {"scale": 2.0}
    assert not turned.laid("key_cache", turned.in_rooms("key", 3, 0.0).repeat(2, axis=1)).flags.c_contiguous
    assert turned.laid("value_cache", np.ones((2, 2, 3, 1))).flags.c_contiguous


def test_sequences_are_stored_for_a_replay_and_come_back():
    given = MANY[-1]
    back = store.decode(json.loads(json.dumps(store.encode(given))))
    assert back.layouts == given.layouts
    assert repr(back) == repr(given)
    assert set(back.options) == set(given.options)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_lies_as_the_original_does_and_shares_nothing(dtype, layout):
    view = LAYOUTS[layout](np.arange(24).reshape(2, 3, 4).astype(dtype))
    other = copied(view)
    np.testing.assert_array_equal(other, view)
    assert other.strides == view.strides
    assert other.dtype == view.dtype
    assert not np.shares_memory(other, view)
    assert other.flags.writeable


def test_what_lies_around_a_view_of_integers_is_the_largest():
    view = LAYOUTS["every second"](np.zeros(3, np.int32))
    assert view.base.tolist() == [0, 2**31 - 1] * 3


def stepping(query, key, value, key_cache, value_cache, lengths):
    """Writes its first tokens at place 0 and advances the caller's lengths."""
    key_cache[:, :, 0], value_cache[:, :, 0] = key[:, :, 0], value[:, :, 0]
    lengths += 1
    return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)


def step():
    new = [np.full((1, 1, 1, 2), n) for n in (1.0, 2.0, 3.0)]
    return [*new, np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)), np.array([0], np.int32)]


def test_what_a_call_leaves_behind_is_read_and_nothing_of_the_caller_is_written():
    run, given = Run(describe(stepping), dtype="float64"), step()
    after = run.left_behind(*given, shape=(1, 1, 1, 2))
    assert after[3][0, 0].tolist() == [[2, 2], [0, 0]]
    assert after[5].tolist() == [1]
    assert given[5].tolist() == [0]
    assert not given[3].any()


def test_what_is_held_is_the_same_in_every_call():
    run, given = Run(describe(stepping), dtype="float64"), step()
    given[3:5] = [run.held(x) for x in given[3:5]]
    caches = [x.native for x in given[3:5]]
    run.call_updating(*given, updated=3, shape=(1, 1, 1, 2))
    assert caches[0][0, 0].tolist() == [[2, 2], [0, 0]]


@pytest.mark.parametrize("rules", [("D % 8 == 0", "G == H"), ("D >= 32", "E == D"), ("K >= 5", "H % 2 == 0")])
def test_sizes_are_those_that_are_required(rules):
    def cached_attention(query, key, value, key_cache, value_cache, lengths):
        raise NotImplementedError

    implementation = describe(cached_attention, operation="cached_attention", arrays="numpy", requires=rules)
    with Run(implementation, dtype="float32").activated():
        examples = drawn(60)
    assert len(examples) >= 20
    assert all(implementation.accepts(p.sizes) is None for given in examples for p in given.problems)
    assert len({tuple(p.sizes.items()) for given in examples for p in given.problems}) > 5
