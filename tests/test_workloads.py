"""Workloads are well-formed and sourced, and their work is counted as brute force counts it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkverify import activations
from qkverify.contract import DEVICES, DTYPES
from qkverify.errors import UsageError
from qkverify.problems import Problem
from qkverify.work import Work, work
from qkverify.workloads import SMALL_GRID, WORKLOADS, Workload, named, small_grid, storage


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_every_workload_is_named_sourced_and_consistent(workload: Workload) -> None:
    s = workload.sizes
    assert WORKLOADS[workload.name] is workload
    assert "arXiv:" in workload.source or "(20" in workload.source
    assert s["H"] % s["G"] == 0
    assert all(size > 0 for size in s.values())
    if workload.key_lengths is not None:
        assert len(workload.key_lengths) == s["B"]
        assert max(workload.key_lengths) <= s["K"]


def test_a_causal_workload_means_the_same_under_both_alignments() -> None:
    assert all(w.sizes["Q"] == w.sizes["K"] for w in WORKLOADS.values() if w.causal)


@pytest.mark.parametrize("device", DEVICES)
def test_the_small_grid_goes_from_short_to_long(device: str) -> None:
    lengths = [workload.sizes["Q"] for workload in small_grid(device)]
    assert SMALL_GRID[device]
    assert lengths[0] == min(lengths)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_workload_becomes_a_problem_of_its_sizes(dtype: str) -> None:
    workload = dataclasses.replace(named("bert-base-padded"), queries=40, key_lengths=(40, 7, 0, 1))
    problem = workload.problem(dtype)
    assert problem.sizes == workload.sizes
    assert problem.query.dtype == storage(dtype)
    assert problem.upstream is not None
    assert problem.upstream.shape == problem.query.shape
    assert workload.options == "key lengths 40, 7, 0, 1"


def test_the_numbers_do_not_depend_on_the_dtype_and_do_on_the_seed() -> None:
    workload = named("transformer-base-128")
    wide, narrow, other = (
        workload.problem("float32"),
        workload.problem("bfloat16"),
        workload.problem("float32", seed=1),
    )
    assert np.array_equal(wide.query.astype(storage("bfloat16")), narrow.query)
    assert not np.array_equal(wide.query, other.query)


def test_real_activations_are_the_stored_ones_and_said_to_be() -> None:
    workload = named("minilm-l6-128")
    problem = workload.problem("bfloat16")
    assert problem.sizes == workload.sizes
    for name, array in activations.stored().items():
        assert np.array_equal(getattr(problem, name)[0], array.astype(storage("bfloat16")))
    assert workload.options == "real activations"
    assert np.array_equal(workload.problem("float32", seed=1).query, workload.problem("float32").query)


def test_an_unknown_workload_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="gpt2-small"):
        named("gpt2-smal")


def test_forward_work_of_full_attention_is_the_textbook_count() -> None:
    problem = dataclasses.replace(named("transformer-base-128"), causal=False).problem("float32")
    assert work(problem, "forward") == Work(4 * 8 * 128 * 128 * 64, 4 * 8 * 128 * 64 * 4)


def test_backward_is_two_and_a_half_times_forward_where_key_and_value_sizes_agree() -> None:
    problem = named("transformer-base-128").problem("float32")
    forward, both = work(problem, "forward").flops, work(problem, "forward+backward").flops
    assert both - forward == 5 * forward // 2


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_the_work_of_any_workload_is_counted_without_its_memory(workload: Workload) -> None:
    outline = workload.outline("bfloat16")
    forward, both = work(outline, "forward"), work(outline, "forward+backward")
    assert outline.query.strides == (0, 0, 0, 0)
    assert 0 < forward.flops < both.flops
    assert 0 < forward.bytes < both.bytes


def test_the_outline_has_the_work_of_the_problem() -> None:
    workload = dataclasses.replace(named("bert-base-padded"), queries=40, key_lengths=(40, 7, 0, 1))
    assert work(workload.outline("float64"), "forward") == work(workload.problem("float64"), "forward")


@st.composite
def small_problems(draw: st.DrawFn) -> Problem:
    """Every way in which a workload can say what is visible, on sizes that brute force can count."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    queries, keys, size, value_size = (draw(st.integers(low, 9)) for low in (0, 0, 1, 1))
    heads, side = kv_heads * group, st.none() | st.integers(0, 10)
    lengths = st.lists(st.integers(0, keys), min_size=batch, max_size=batch)
    given_lengths = draw(st.none() | lengths)
    mask_shape = draw(
        st.none() | st.sampled_from([(batch, heads, queries, keys), (1, 1, queries, keys), (queries, keys)])
    )
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    return Problem(
        query=np.zeros((batch, heads, queries, size), np.float32),
        key=np.zeros((batch, kv_heads, keys, size), np.float32),
        value=np.zeros((batch, kv_heads, keys, value_size), np.float32),
        upstream=np.zeros((batch, heads, queries, value_size), np.float32),
        causal=draw(st.booleans()),
        window=draw(st.none() | st.tuples(side, side)),
        key_lengths=None if given_lengths is None else np.array(given_lengths, np.int32),
        mask=None if mask_shape is None else numbers.random(mask_shape) < 0.5,
        causal_alignment=draw(st.sampled_from(["bottom-right", "top-left"])),
    )


def counted_by_hand(problem: Problem) -> tuple[Work, Work]:
    """Every visible pair and every touched number, one at a time, from the mask that the reference uses."""
    s, seen = problem.sizes, problem.visible
    forward = backward = 0
    touched: set[tuple[str, int, int, int]] = set()
    for b, h, _, j in zip(*np.nonzero(seen), strict=True):
        forward += 2 * s["D"] + 2 * s["E"]
        backward += 3 * 2 * s["D"] + 2 * 2 * s["E"]  # S, dQ, dK of size D; dP, dV of size E
        touched |= {("key", b, h // problem.group, j), ("value", b, h // problem.group, j)}
    rows = {"key": s["D"], "value": s["E"]}
    masks = 0 if problem.mask is None else problem.mask.nbytes
    read = 4 * sum(rows[name] for name, *_ in touched) + problem.query.nbytes + masks
    output = 4 * s["B"] * s["H"] * s["Q"] * s["E"]
    gradients = problem.query.nbytes + problem.key.nbytes + problem.value.nbytes
    return Work(forward, read + output), Work(forward + backward, read + output + output + gradients)


@settings(max_examples=1000, deadline=None)
@given(small_problems())
def test_work_equals_brute_force(problem: Problem) -> None:
    forward, both = counted_by_hand(problem)
    assert work(problem, "forward") == forward
    assert work(problem, "forward+backward") == both
