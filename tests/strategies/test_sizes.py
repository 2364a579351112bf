"""Sizes of problems: as required, and never so large that a law needs gigabytes."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.problem.byte_strategies import sampled
from qkverify.runs.run import Run
from qkverify.strategies.attention_problems import problems

MOST = 2**25  # query-key pairs times features: 256 MiB of float64


def attention(query, key, value):
    return query


@pytest.mark.parametrize(
    "requires",
    [(), ("G == H", "K >= 1"), ("E == D",), ("Q == K", "E == D"), ("G == H", "E == D", "Q == K"), ("D % 8 == 0",)],
    ids=" and ".join,
)  # fmt: skip
def test_a_problem_is_long_in_one_way_at_a_time(requires):
    """A size that is required to equal another took those of all: 1,025 queries, as many keys, and heads as wide."""
    run, generator, strategy = (
        Run(describe(attention, arrays="numpy", requires=requires), "cpu", "float32"),
        np.random.default_rng(1),
        problems(),
    )
    with run.activated():
        drawn = [sampled(strategy, generator) for _ in range(600)]
    sizes = [problem.sizes for problem in drawn if problem is not None]
    assert len(sizes) > 300
    assert all(run.implementation.accepts(s) is None for s in sizes)
    assert max(s["B"] * s["H"] * s["Q"] * s["K"] * max(s["D"], s["E"]) for s in sizes) <= MOST
    assert max(s["K"] for s in sizes) > 300
