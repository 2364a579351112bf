"""Workloads are well-formed and sourced, and become the problems that they describe."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qkverify.contract import DEVICES, DTYPES
from qkverify.errors import UsageError
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
