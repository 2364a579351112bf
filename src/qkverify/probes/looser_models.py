"""A looser model of rounding: when it is granted to a function that declares none, and what is said of that.

Bounds of code that rounds after every operation are many times wider than those of a fused kernel, and a wrong kernel hides
behind them as well as a right one. So a looser model must explain the errors of many results too: under it the score tests
hold (see `runs.score_tests`). If they do not, the function is held to the tighter model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Bounded
from qkverify.runs import score_problems, score_tests
from qkverify.runs.run import Run
from qkverify.runs.score_tests import ParameterScore

SEED = 0
WORDS = {
    "fused-fast-exp": "as fused with an approximate exponential",
    "eager": "as rounding after every operation",
}
TESTS: Mapping[bool, tuple[tuple[Callable[..., list[Problem]], Callable[..., list[ParameterScore]]], ...]] = {
    False: (
        (score_problems.heads, score_tests.size_of_output),
        (score_problems.two_levels, score_tests.scale_of_output),
    ),
    True: (
        (score_problems.heads, score_tests.size_of_gradients),
        (score_problems.two_levels, score_tests.scale_of_gradients),
        (score_problems.alike_values, score_tests.delta_of_gradients),
    ),
}  # of the output, and of gradients
SYMBOLS = {"query": "dQ", "key": "dK", "value": "dV", "bias": "dbias"}


def explains(run: Run, *, gradients: bool = False) -> bool:
    """Whether the score tests hold under the run's precision: of the output, or of the gradients.

    True where they cannot be made, as of a function that takes no such sizes: the laws meet the same error.
    """
    if score_tests.unfit(run):
        return True
    run.begin_example()
    try:
        scores = [
            x for drawn, test in TESTS[gradients] for x in test(run, drawn(run, SEED, upstream=gradients))
        ]
    except Exception:  # whatever the function raises: the law that meets the same error reports it
        return True
    return all(each.score.holds for each in scores)


def statement(model: str, exceeded: float | None, tight: Run, loose: Run, problem: Problem) -> str:
    """What is granted, in a sentence: how far the fused model is exceeded, and how much wider the bounds of `model` are.

    - `exceeded`: the largest error as a multiple of its bound under the fused model; None if it says nothing
    - `problem`: the median over its results is how much wider the bounds are; with an upstream gradient, those of gradients
    """
    wider = ", ".join(f"{ratio:.2g} x ({name})" for name, ratio in _widths(tight, loose, problem).items())
    subject = "" if problem.upstream is None else "gradients "
    past = f", whose bound was exceeded by a factor of {exceeded:.2g}" if exceeded is not None else ""
    return f"{subject}judged {WORDS[model]}: errors may be {wider} those of a fused kernel{past}"


def _widths(tight: Run, loose: Run, problem: Problem) -> dict[str, float]:
    """The median of loose bound / tight bound, by what they are of."""
    if problem.upstream is None:
        pairs = {"output": (tight.bound(problem)[0], loose.bound(problem)[0])}
    else:
        bounds = tight.gradient_bounds(problem), loose.gradient_bounds(problem)
        pairs = {SYMBOLS[name]: (bounds[0][name], bounds[1][name]) for name in bounds[0] if name in SYMBOLS}
    return {name: _ratio(*pair) for name, pair in pairs.items()}


def _ratio(tight: Bounded, loose: Bounded) -> float:
    said = (tight.errors > 0) & np.isfinite(tight.errors)
    return float(np.median(loose.errors[said] / tight.errors[said])) if said.any() else 1.0
