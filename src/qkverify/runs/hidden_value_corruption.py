"""Poison: what may be poured into keys and values that no query sees, and which rows it may not change.

NaN and inf where the implementation ignores invisible values; where it is known to read them (0 * NaN), large finite numbers.
"""

from __future__ import annotations

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import FORMATS
from qkverify.runs.assertions import assert_same_result, assert_within_bound
from qkverify.runs.run import Run


def poisons(run: Run) -> list[float]:
    """What may be poured into invisible keys and values of this implementation without a trace."""
    finite = [1e4, -1e4] if run.dtype == "float16" else [1e4, -1e4, 1e18]
    return [np.nan, np.inf, -np.inf, *finite] if run.semantics["masked_values"] == "ignored" else finite


def poisoned(run: Run, problem: Problem, hidden: np.ndarray, which: int) -> Problem:
    """The problem with poison in `hidden`, bool (B,G,K): keys and values that nothing may read."""
    every = poisons(run)
    poison = _without_overflow(run, problem, every[which % len(every)])
    key, value = problem.key.copy(), problem.value.copy()
    key[hidden] = value[hidden] = poison
    return problem.replace(key=key, value=value)


def _without_overflow(run: Run, problem: Problem, poison: float) -> float:
    """The poison; a finite one only so large that no sum of its products with a row of queries or upstream gradients overflows:
    zero times infinity would be NaN in right code that reads hidden values."""
    if not np.isfinite(poison):
        return poison
    rows = [
        float(np.abs(x.astype(np.float64)).sum(-1).max(initial=0.0))
        for x in (problem.query, problem.upstream)
        if x is not None
    ]
    factor = max(1.0, abs(problem.scale or 0.0)) * max(1.0, *(row for row in rows if np.isfinite(row)))
    return float(np.copysign(min(abs(poison), FORMATS[run.dtype].huge / 2 / factor), poison))


def assert_poison_is_without_effect(
    run: Run, problem: Problem, hidden: np.ndarray, which: int, rows: np.ndarray
) -> None:
    """The output rows are what they were (see `assert_same_result`). Where the poison is not finite it is enough that they are
    right: an implementation may clean NaN away by a path of its own, which sums in another order."""
    changed = poisoned(run, problem, hidden, which)
    got = run.values(changed)
    if hidden.any() and not np.isfinite(changed.value[hidden]).all():
        assert_within_bound(run.within(got, run.bound(problem)[0])[rows], run(problem)[rows])
    else:
        assert_same_result(run, got[rows], run.values(problem)[rows], lambda: run.bound(problem)[0][rows])


def judged(problem: Problem) -> np.ndarray:
    """bool (B,H,Q): rows that poison may not change. A row that sees nothing may average every value, if so declared."""
    return np.asarray(problem.some_visible | (problem.empty_row == "zero"))


def unseen(problem: Problem) -> np.ndarray:
    """bool (B,G,K): the keys that no query of any head of the group sees."""
    s = problem.sizes
    visible = problem.visible.reshape(s["B"], s["G"], s["H"] // s["G"], s["Q"], s["K"])
    return np.asarray(~visible.any(axis=(2, 3)))
