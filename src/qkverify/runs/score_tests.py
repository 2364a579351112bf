"""Score tests of attention: whether a parameter of it is off, by a share that hides in the bound of a single element.

One call, or a few, on many heads whose numbers are drawn independently. For each parameter the errors of all results are
regressed on the exact result's derivative by its logarithm (see `rounding.score_test`); the slope is the share by which the
parameter is too large. `systematic_errors` says what the slope of a right kernel may be.

    softmax scale        of the output, and of the gradient of value
    size                 of the output and each gradient: d result / d log size is the result. So moves a row sum, a scale of
                         the values, and what is cut off instead of rounded
    delta                rowsum(dO O), in the gradients of query and key
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.errors import UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Precision
from qkverify.rounding.score_test import Score, score
from qkverify.runs.assertions import Evidence, raise_violation
from qkverify.runs.run import Run
from qkverify.runs.systematic_errors import Allowance, Steps, turned

Array = np.ndarray
HEADS = 256
HEADS_OF_SLOW = 96  # where calls are slow; with fewer than REACH ** 2 = 71 no error could break the test
SIZES = (16, 64, 128)  # of queries and keys (D) and values (E)
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


def heads(run: Run, seed: int, *, queries: int = 16, keys: int = 64, upstream: bool = False) -> list[Problem]:
    """Normal numbers for `HEADS` independent heads (`HEADS_OF_SLOW` where calls are slow), in one problem or several. Raises
    UnsupportedCase if none has a size that the implementation takes."""
    count = HEADS_OF_SLOW if run.implementation.slow(run.device) else HEADS
    sizes = {"Q": queries, "K": keys}
    fitting = (
        {**sizes, **split, "D": size, "E": size}
        for size in SIZES
        for split in _splits(count)
        if run.implementation.accepts({**sizes, **split, "D": size, "E": size}) is None
    )
    s = next(fitting, None)
    if s is None:
        raise UnsupportedCase(
            f"{run.implementation.name} takes no {count} heads of {queries} queries and {keys} keys"
        )
    rng = np.random.default_rng(seed)

    def normal(length: int, width: int) -> Array:
        return np.asarray(rng.standard_normal((s["B"], s["H"], length, width)).astype(run.numpy_dtype))

    return [
        Problem(query=normal(s["Q"], s["D"]), key=normal(s["K"], s["D"]), value=normal(s["K"], s["E"]),
                upstream=normal(s["Q"], s["E"]) if upstream else None)
        for _ in range(count // (s["B"] * s["H"]))
    ]  # fmt: skip


def _splits(count: int) -> tuple[dict[str, int], ...]:
    """So many heads as batch entries and heads of one call, or one by one for a function that takes a single head."""
    per_entry = 16
    return (
        {"B": count // per_entry, "H": per_entry, "G": per_entry},
        {"B": count, "H": 1, "G": 1},
        {"B": 1, "H": 1, "G": 1},
    )


def of_output(run: Run, problems: list[Problem], precision: Precision | None = None) -> list[ParameterScore]:
    """The scores of the softmax scale and of the size of the output, under a precision (default: the run's)."""
    parts: dict[str, list[Any]] = {}
    for problem in problems:
        exact, got = run.exact(problem), run(problem)
        run.compared.note(got, exact, [problem])
        steps = Steps.of(problem)
        allowance = Allowance.of(precision or run.precision, steps)
        away = steps.scores - steps.mean(steps.scores)
        for parameter, derivative in ((SCALE, (steps.weights * away) @ steps.value), (SIZE, exact)):
            parts.setdefault(parameter, []).append(
                _contributions(got.value - exact, derivative, allowance.output(derivative, exact))
            )
    return [_scored(parameter, "output", several) for parameter, several in parts.items()]


def of_gradients(
    run: Run, problems: list[Problem], precision: Precision | None = None
) -> list[ParameterScore]:
    """The scores of the softmax scale (gradient of value), of the size (all gradients) and of delta (query and key)."""
    parts: dict[tuple[str, str], list[Any]] = {}
    for problem in problems:
        exact, got = run.exact_gradients(problem), run.gradients(problem)
        allowance = Allowance.of(precision or run.gradient_precision, Steps.of(problem))
        for parameter, name, derivative in _gradient_derivatives(allowance.steps, exact):
            run.compared.note(got[name], exact[name], [problem])
            error = got[name].value - exact[name]
            room = (
                allowance.value_gradient(derivative, exact[name])
                if name == "value"
                else allowance.score_gradient(name, derivative, exact[name])
            )
            parts.setdefault((parameter, name), []).append(_contributions(error, derivative, room))
    return [_scored(parameter, name, several) for (parameter, name), several in parts.items()]


def _gradient_derivatives(steps: Steps, exact: Mapping[str, Array]) -> Iterator[tuple[str, str, Array]]:
    """Parameter, name of the gradient, and its derivative by the parameter's logarithm."""
    for name in ("query", "key", "value"):
        yield SIZE, name, exact[name]
    away = steps.scores - steps.mean(steps.scores)
    yield SCALE, "value", turned(steps.weights * away) @ steps.upstream
    moved = -steps.weights * steps.mean(steps.d_weights) * steps.scale
    yield DELTA, "query", moved @ steps.key
    yield DELTA, "key", turned(moved) @ steps.query


def _contributions(error: Array, derivative: Array, room: Array) -> tuple[Array, Array, Array]:
    """What each head contributes, (n,) each: see `rounding.score_test.score`."""
    axes = (-1, -2)
    return (error * derivative).sum(axes).ravel(), (derivative**2).sum(axes).ravel(), room.ravel()


def _scored(parameter: str, result: str, parts: list[tuple[Array, Array, Array]]) -> ParameterScore:
    contributions, squares, means = (np.concatenate(each) for each in zip(*parts, strict=True))
    return ParameterScore(parameter, result, score(contributions, squares, means), contributions.size)
