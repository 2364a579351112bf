"""Score tests of attention: whether a parameter of it is off, by a share that hides in the bound of a single element.

The errors of many independent heads (`score_problems`) are regressed on the exact result's derivative by the logarithm of a
parameter (see `rounding.score_test`); the slope is the share by which the parameter is too large. What the slope of a right
kernel may be is derived: for the output and the softmax scale by `balanced_tests`, else by `systematic_errors`.

    softmax scale        of the output, and of the gradient of value
    size                 of the output and each gradient: d result / d log size is the result. So moves a row sum, a scale of
                         the values, and what is cut off instead of rounded
    weight of some keys  in long rows, of each 16 keys, by the output
    delta                rowsum(dO O), in the gradients of query and key
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding.score_test import Score, score
from qkverify.runs import balanced_tests
from qkverify.runs.assertions import Evidence, raise_violation
from qkverify.runs.attention_steps import Steps, turned
from qkverify.runs.balanced_tests import Balanced
from qkverify.runs.long_rows import weights_of_tiles
from qkverify.runs.run import Run
from qkverify.runs.systematic_errors import Allowance

Array = np.ndarray
SCALE, SIZE, DELTA = "softmax scale", "size", "delta"


@dataclass(frozen=True)
class ParameterScore:
    """The score of one parameter in one result: "output", or the name of what a gradient belongs to."""

    parameter: str
    result: str
    score: Score
    heads: int

    @property
    def margin(self) -> float:
        """The slope as a share of what a right result may reach; not a number if the result is none."""
        return abs(self.score.slope) / self.score.room

    def __str__(self) -> str:
        whose = self.result if self.result == "output" else f"gradient of {self.result}"
        if self.parameter == SIZE:
            return f"relative error of the {whose} in the mean over {self.heads} heads"
        return f"relative error of the {self.parameter}, by the errors of the {whose} over {self.heads} heads"


def unfit(run: Run) -> str | None:
    """Why score tests say nothing of a run, or None."""
    if run.precision.operand.unit > run.precision.output.unit:
        return f"inputs are rounded to {run.precision.operand.name}, where hardware may cut them off"
    return None


def assert_unbiased(run: Run, scores: list[ParameterScore]) -> None:
    """No slope exceeds its room. Raises LawViolation with the worst."""
    worst = max(scores, key=lambda each: np.nan_to_num(each.margin, nan=np.inf))
    if not worst.score.holds:
        raise_violation(Evidence(str(worst), (), worst.score.slope, 0.0, worst.score.room, worst.margin))
    run.largest_margin = max(run.largest_margin, worst.margin)


def size_of_output(run: Run, problems: list[Problem]) -> list[ParameterScore]:
    """The score of the size of the output, of problems as `score_problems.heads` draws them."""
    return _of_output(
        run, problems, lambda allowed, exact: {SIZE: balanced_tests.size_of_output(allowed, exact)}
    )


def scale_of_output(run: Run, problems: list[Problem]) -> list[ParameterScore]:
    """The score of the softmax scale by the output, of problems of two levels."""
    return _of_output(
        run, problems, lambda allowed, exact: {SCALE: balanced_tests.scale_of_output(allowed, exact)}
    )


def long_rows_of_output(run: Run, problems: list[Problem]) -> list[ParameterScore]:
    """The scores of the size of the output and of the weights of each 16 keys, of problems with many keys."""

    def tests(allowed: Allowance, exact: Array) -> dict[str, Balanced]:
        return {SIZE: balanced_tests.size_of_output(allowed, exact), **weights_of_tiles(allowed, exact)}

    return _of_output(run, problems, tests)


def _of_output(
    run: Run, problems: list[Problem], tests: Callable[[Allowance, Array], dict[str, Balanced]]
) -> list[ParameterScore]:
    parts: dict[str, list[Any]] = {}
    for problem in problems:
        exact, got = run.exact(problem), run(problem)
        run.compared.note(got, exact, [problem])
        allowance = Allowance.of(run.precision, Steps.of(problem))
        for parameter, test in tests(allowance, exact).items():
            parts.setdefault(parameter, []).append(_contributions(got.value - exact, test))
    return [_scored(parameter, "output", several) for parameter, several in parts.items()]


def scale_of_gradients(run: Run, problems: list[Problem]) -> list[ParameterScore]:
    """The score of the softmax scale by the gradient of value, of problems of two levels."""
    parts = []
    for problem in problems:
        exact, got = run.exact_gradients(problem)["value"], run.gradients(problem)["value"]
        run.compared.note(got, exact, [problem])
        allowance = Allowance.of(run.gradient_precision, Steps.of(problem))
        test = balanced_tests.scale_of_value_gradient(allowance, exact)
        parts.append(_contributions(got.value - exact, test))
    return [_scored(SCALE, "value", parts)]


def size_of_gradients(run: Run, problems: list[Problem]) -> list[ParameterScore]:
    """The scores of the size of all gradients, of problems as `score_problems.heads` draws them."""
    return _of_gradients(run, problems, SIZE, lambda steps, exact: exact)


def delta_of_gradients(run: Run, problems: list[Problem]) -> list[ParameterScore]:
    """The scores of delta by the gradients of query and key, of problems as `score_problems.alike_values` draws them."""
    return _of_gradients(run, problems, DELTA, lambda steps, exact: by_delta(steps))


def by_delta(steps: Steps) -> Mapping[str, Array]:
    """The derivatives of the gradients of query and key by the logarithm of delta."""
    moved = -steps.weights * steps.mean(steps.d_weights) * steps.scale
    return {"query": moved @ steps.key, "key": turned(moved) @ steps.query}


def _of_gradients(run: Run, problems: list[Problem], parameter: str,
                  derivatives: Callable[[Steps, Mapping[str, Array]], Mapping[str, Array]]) -> list[ParameterScore]:  # fmt: skip
    parts: dict[str, list[Any]] = {}
    for problem in problems:
        exact, got = run.exact_gradients(problem), run.gradients(problem)
        allowance = Allowance.of(run.gradient_precision, Steps.of(problem))
        for name, derivative in derivatives(allowance.steps, exact).items():
            run.compared.note(got[name], exact[name], [problem])
            test = Balanced(derivative, derivative, allowance.gradient(name, derivative, exact[name]))
            parts.setdefault(name, []).append(_contributions(got[name].value - exact[name], test))
    return [_scored(parameter, name, several) for name, several in parts.items()]


def _contributions(error: Array, test: Balanced) -> tuple[Array, Array, Array]:
    """What each head contributes, (n,) each: see `rounding.score_test.score`."""
    axes = (-1, -2)
    along = (test.derivative * test.multiplier).sum(axes)
    return (error * test.multiplier).sum(axes).ravel(), along.ravel(), test.room.ravel()


def _scored(parameter: str, result: str, parts: list[tuple[Array, Array, Array]]) -> ParameterScore:
    contributions, squares, means = (np.concatenate(each) for each in zip(*parts, strict=True))
    return ParameterScore(parameter, result, score(contributions, squares, means), contributions.size)
