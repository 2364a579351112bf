"""The model of rounding by which attention in half precision is judged, where it is not declared, and what is rounded besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from qkverify.contract import Implementation
from qkverify.probes import fast_exponential, further_roundings, looser_models, swallowed_parts
from qkverify.probes.choice import Choice, Known
from qkverify.probes.small_problems import answer, head_size, small_problem, within
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Bounded, Precision
from qkverify.runs.run import Run

FUSED = ("fused", "fused-fast-exp")


def of_output(implementation: Implementation, run: Run) -> dict[str, Choice]:
    """The precision: one of `FUSED` where random problems hold to a fused kernel's bound, else "eager" (every operation rounds).
    And what a fused kernel rounds besides."""
    declared = implementation.declared_precision(run.device, run.dtype)
    if declared is not None:
        named = declared if isinstance(declared, str) else "declared"
        return {"precision": Choice(named, "declared"), **_further_in_output(run, None)}
    # The errors of an exact exponential and of an output that is cut off look like a curve, too.
    fast = answer(speed_of_exponential, run) == "fast" and looser_models.explains(_judged(run, FUSED[1]))
    name = FUSED[fast]
    model = Precision.named(name, run.dtype)
    exceeded = _exceeded(run, model, run.semantics)
    further = _further_in_output(run, model)
    fused, eager = _judged(run, FUSED[0]), _judged(run, "eager")
    if exceeded > 1 and not further and looser_models.explains(eager):
        return {"precision": Choice("eager", "detected", _statement("eager", exceeded, fused, eager))}
    looser = _statement(name, None, fused, _judged(run, name)) if fast else ""
    return {"precision": Choice(name, "detected", looser), **further}


def _exceeded(run: Run, model: Precision, semantics: Mapping[str, str]) -> float:
    """The largest error of random problems as a multiple of the bounds of a model, under some conventions."""
    judged = Run(run.implementation, run.device, run.dtype, semantics, model)
    return max(
        _largest_margin(lambda problem: [(judged(problem), judged.exact(problem))], judged),
        _score_margin(judged),
    )


Pairs = list[tuple[Bounded, np.ndarray]]  # what came back with its bound, and what is exact


def _further_in_output(run: Run, model: Precision | None) -> dict[str, Choice]:
    def pairs(judged: Run, problem: Problem) -> Pairs:
        return [(judged(problem), judged.exact(problem))]

    model = model or run.precision
    if model.op_by_op:
        return {}  # every operation rounds anyway
    further = list(further_roundings.of_output(run, head_size(run)))
    return _earned(run, model, further, pairs, lambda semantics: _exceeded(run, model, semantics) <= 1)


def further_in_gradients(run: Run, precision: Choice) -> dict[str, Choice]:
    def pairs(judged: Run, problem: Problem) -> Pairs:
        exact = judged.exact_gradients(problem)
        return [(got, exact[name]) for name, got in judged.gradients(problem).items()]

    model = (
        run.gradient_precision if precision.how == "declared" else Precision.named(precision.value, run.dtype)
    )
    further = further_roundings.of_steps if model.op_by_op else further_roundings.of_gradients
    return _earned(run, model, list(further(run, head_size(run))), pairs)


def _earned(run: Run, model: Precision, further: Sequence[tuple[str, str, list[Problem]]],
            pairs: Callable[[Run, Problem], Pairs],
            also: Callable[[Mapping[str, str]], bool] = lambda semantics: True) -> dict[str, Choice]:  # fmt: skip
    """The first of several further roundings without which the bounds do not hold on its own problems, and with which they hold
    on all of them and `also` elsewhere. What is believed is noted in the semantics of the run.

    Nothing of what is declared, and where a call raises.
    """

    def hold(problems: Sequence[Problem], extra: Mapping[str, str]) -> bool | None:
        judged = Run(run.implementation, run.device, run.dtype, {**run.semantics, **extra}, model, model)
        return answer(
            lambda _: all(within(*pair) for problem in problems for pair in pairs(judged, problem)), run
        )

    every = [problem for _, _, problems in further for problem in problems]
    for name, value, problems in further:
        extra = {name: value}
        if name in run.implementation.semantics or hold(problems, {}) is not False:
            continue
        if hold(every, extra) and also({**run.semantics, **extra}):
            run.semantics[name] = value
            return {name: Choice(value, "detected")}
    return {}


def _judged(run: Run, model: str) -> Run:
    """The same run under a model of rounding."""
    precision = Precision.named(model, run.dtype)
    return Run(run.implementation, run.device, run.dtype, run.semantics, precision, precision)


def _statement(model: str, exceeded: float | None, tight: Run, loose: Run, *, gradients: bool = False) -> str:
    """See `looser_models.statement`; the sizes are of the kind that most calls have."""
    problem = small_problem(tight, queries=16, keys=64, seed=0)
    if gradients:
        problem = _with_upstream(problem)
    return looser_models.statement(model, exceeded, tight, loose, problem)


def _with_upstream(problem: Problem) -> Problem:
    shape = (*problem.query.shape[:3], problem.sizes["E"])
    upstream = np.random.default_rng(problem.sizes["K"]).standard_normal(shape)
    return problem.replace(upstream=upstream.astype(problem.query.dtype))


def _score_margin(run: Run) -> float:
    """The largest error of weights, as a multiple of the bound that the run carries, where scores are large: stored in half
    precision they would be wrong by about their own size in unit roundoffs, which small scores hide behind the rounding of the
    weights.

    The scale is a power of two, so that a query which is multiplied by it and stored again is no excuse.
    """
    options: dict[str, Any] = {"scale": 1.0} if run.offers("scale") else {}
    largest = 0.0
    for seed in range(10):
        problem = small_problem(run, queries=16, keys=16, seed=seed, **options)
        # The keys lie close together, so that every weight counts.
        key = (8 + problem.key.astype(np.float64) / 8).astype(run.numpy_dtype)
        problem = problem.replace(query=problem.query * run.numpy_dtype(4), key=key)
        try:
            largest = max(largest, _margin(run(problem), run.exact(problem)))
        except Exception:  # as in answer
            return largest
    return largest


def speed_of_exponential(run: Run) -> str:
    """Of half precision: "fast" or "right". Where asking would take a minute, "right"."""
    slow = run.implementation.slow(run.device)
    return "fast" if not slow and fast_exponential.is_fast(run, head_size(run)) else "right"


def of_gradients(implementation: Implementation, run: Run, forward: Choice) -> dict[str, Choice]:
    """The precision of the gradients, and which delta it takes to hold to it: a fused backward pass may keep the output
    only, and that is rounded."""
    deltas = (
        ("weights", "output")
        if "delta" not in implementation.semantics
        else (implementation.semantics["delta"],)
    )
    # The exponential of the backward pass may be the better one, and the tighter model tells one delta from the other.
    models = dict.fromkeys(("fused", forward.value)) if forward.value in FUSED else (forward.value,)
    least = np.inf  # by which fused models are exceeded
    for model, delta in product(models, deltas):
        run.semantics["delta"] = delta
        precision, exceeded = _gradient_precision(implementation, run, forward, model)
        if precision.value != "eager" or forward.value == "eager":
            break
        least = min(least, exceeded)
    else:
        delta = run.semantics["delta"] = implementation.semantics.get("delta", "weights")
        fused, eager = _judged(run, FUSED[0]), _judged(run, "eager")
        if looser_models.explains(eager, gradients=True):
            precision = Choice("eager", "detected", _statement("eager", least, fused, eager, gradients=True))
        else:
            precision = Choice(forward.value, "detected")
    known: Known = "declared" if "delta" in implementation.semantics else "detected"
    return {"gradient_precision": precision, "delta": Choice(delta, known)}


def _gradient_precision(
    implementation: Implementation, run: Run, forward: Choice, model: str
) -> tuple[Choice, float]:
    """The output's, if the gradients hold to `model`; else "eager": the backward pass may round operation by operation. And the
    largest error as a multiple of its bound under `model`, 0 if that was not asked."""
    declared = implementation.precision.get(
        f"{run.dtype}-gradients", forward.value if forward.how == "declared" else None
    )
    if declared is not None:
        return Choice(declared if isinstance(declared, str) else "declared", "declared"), 0.0
    if forward.value not in FUSED:
        return Choice(
            forward.value,
            forward.how,
            _statement(
                forward.value, None, _judged(run, FUSED[0]), _judged(run, forward.value), gradients=True
            ),
        ), 0.0
    judged = _judged(run, model)

    def pairs(problem: Problem) -> list[tuple[Bounded, np.ndarray]]:
        problem = problem if problem.upstream is not None else _with_upstream(problem)
        exact = judged.exact_gradients(problem)
        return [(got, exact[name]) for name, got in judged.gradients(problem).items()]

    exceeded = _largest_margin(pairs, judged, swallowed_parts.problems(judged, head_size(judged)))
    return (Choice("eager", "detected") if exceeded > 1 else replace(forward, looser="")), exceeded


def _largest_margin(
    pairs: Callable[[Problem], list[tuple[Bounded, np.ndarray]]], run: Run, further: Sequence[Problem] = ()
) -> float:
    """The largest error of forty random problems, and further ones, as a multiple of the bound that the run carries; 0 once the
    function raises."""
    largest = 0.0
    # Over many keys the output is small, and what a rounded output excuses with it.
    random = (small_problem(run, queries=5, keys=(7, 33, 257)[seed % 3], seed=seed) for seed in range(40))
    for problem in (*random, *further):
        try:
            compared = pairs(problem)
        except Exception:  # as in answer
            return 0.0
        largest = max([largest, *(_margin(got, exact) for got, exact in compared)])
    return largest


def _margin(got: Bounded, exact: np.ndarray) -> float:
    """The largest error as a multiple of its bound."""
    error = np.abs(got.value - exact)
    margins = np.divide(error, got.errors, out=np.where(error > 0, np.inf, 0.0), where=got.errors > 0)
    return float(np.max(margins, initial=0.0, where=margins > 0))
