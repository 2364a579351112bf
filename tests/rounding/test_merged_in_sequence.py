"""Tiles that are merged in sequence by rounded log-sum-exps: declared, and bounded by one rounding a tile."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import FLOAT32
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, prepare
from qkverify.verification.mutation_testing import planted

TILES = 256  # of 16 keys


def control():  # type: ignore[no-untyped-def]
    pytest.importorskip("torch")
    return next(i for i in planted("controls") if i.name == "control-merged-in-sequence")


def run_of(way: str) -> Run:
    return Run(control(), "cpu", "float32", {"merges": way})


def averaging(score: float, tiles: int) -> Problem:
    """Equal scores, and values of which the first half are ones: the output is a half."""
    arrays = {"query": np.ones((1, 1, 1, 1)), "key": np.full((1, 1, 16 * tiles, 1), score),
              "value": np.repeat([1.0, 0.0], 8 * tiles)[None, None, :, None]}  # fmt: skip
    return Problem(**{name: x.astype(np.float32) for name, x in arrays.items()})


def largest_margin(way: str) -> float:
    """Where log-sum-exps no longer grow with each tile, because their units in the last place are too large."""
    run, largest = run_of(way), 0.0
    for exponent in range(10, 20):
        run.begin_example()
        problem = averaging(2.0**exponent, TILES)
        output, exact = run(problem), run.exact(problem)
        largest = max(largest, float((np.abs(output.value - exact) / output.errors).max()))
    return largest


def test_merges_in_sequence_need_their_bound_and_keep_to_it() -> None:
    assert prepare(Cell(control(), "cpu", "float32")).precision.in_sequence
    assert largest_margin("in sequence") <= 1 < largest_margin("few")


@pytest.mark.parametrize("tiles", [1, 2, 64])
def test_each_further_tile_adds_one_rounding_of_the_log_sum_exp(tiles: int) -> None:
    """Of numerator and denominator, so twice: nothing for one tile."""
    score = 64.0
    few, sequence = (
        float(run_of(way).bound(averaging(score, tiles))[0].errors.max()) for way in ("few", "in sequence")
    )
    expected = 2 * (tiles - 1) * FLOAT32.unit * score * 0.5
    assert sequence - few == pytest.approx(expected, rel=0.05)
