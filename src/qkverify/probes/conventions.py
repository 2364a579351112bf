"""Finding out what an implementation chose where libraries differ legitimately.

A declared choice is taken at its word and the laws hold it to that. An undeclared one is probed on an example small enough to
be read, printed ("detected: causal top-left"), and, but for `PRINTED_ALONE`, held to for the rest of the run. A probe that
raises leaves the choice open: the laws will meet the same error and report it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal, TypeVar

import numpy as np

from qkverify.contract import Implementation, empty_rows, mask_forms, messages
from qkverify.contract.operations import DESCRIBED, word
from qkverify.errors import ContractError
from qkverify.probes import (
    fast_exponential,
    further_roundings,
    looser_models,
    operation_rounding,
    shared_empty_rows,
)
from qkverify.probes.layouts import layout
from qkverify.probes.norms import norms
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Bounded, Precision
from qkverify.runs.accepted_heads import heads
from qkverify.runs.run import Run

HARDLY_A_SCORE = (
    -30_000.0
)  # a number that stands for -inf in float16 is about half of its largest: lower than any score

Known = Literal["declared", "detected", "not applicable"]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Choice:
    """One convention of one implementation: its value and how it is known. `looser` says of a model of rounding that is looser
    than the fused one why it was granted."""

    value: str
    how: Known
    looser: str = ""


@messages.collected()
def detect(implementation: Implementation, device: str, dtype: str) -> dict[str, Choice]:
    """Every convention of an implementation in one cell, with the precision model it is judged by in half precision."""
    run = Run(implementation, device, dtype)
    choices: dict[str, Choice] = {}
    if implementation.operation != "attention":
        choices |= _left_out(implementation, run)
        run.semantics |= settled(choices)
        return {**choices, **_rounding(implementation, run)}
    for name, probe in PROBES.items():
        if name in implementation.semantics:
            choices[name] = Choice(_whole(implementation.semantics[name], probe, run), "declared")
            run.semantics[name] = choices[name].value
            continue
        value = _answer(probe, run)
        if name in UNUSUAL and not value:
            continue
        choices[name] = Choice(value, "detected") if value else Choice("none", "not applicable")
        if value:
            run.semantics[name] = value
    if dtype in ("float16", "bfloat16"):
        choices |= _output_rounding(implementation, run)
        if run.offers("gradients"):
            choices |= _gradient_conventions(implementation, run, choices["precision"])
            choices |= _further_in_gradients(run, choices["gradient_precision"])
    return choices


def settled(choices: Mapping[str, Choice]) -> dict[str, str]:
    """The conventions a run is held to."""
    return {
        name: choice.value
        for name, choice in choices.items()
        if choice.how != "not applicable"
        and name not in ("precision", "gradient_precision")
        and not (name in PRINTED_ALONE and choice.how == "detected")
    }


# What is said only where it is so: the contract asks for an error, and for a difference.
UNUSUAL = ("mismatched_sizes", "exponent")


# What a probe finds and nobody is held to: the contract wants the natural log-sum-exp of whoever says nothing, and bits that
# agreed on one small example need not on others (a matrix product may depend on where its operands lie in memory).
PRINTED_ALONE = ("lse", "deterministic", "batch_invariant")


def precisions_of(choices: Mapping[str, Choice], dtype: str) -> dict[str, Precision]:
    """The precision models that were detected, as `Run` takes them: of the output and of the gradients."""
    return {
        name: Precision.named(choices[name].value, dtype)
        for name in ("precision", "gradient_precision")
        if name in choices and choices[name].how == "detected"
    }


def _answer(probe: Callable[[Run], Answer | None], run: Run) -> Answer | None:
    try:
        return probe(run)
    except Exception:  # the law that meets the same error reports it with its problem
        return None


def _whole(declared: str, probe: Callable[[Run], str | None], run: Run) -> str:
    """A declaration as it is; where it speaks of some ways to hide keys only, with what was found out of the others."""
    ways = empty_rows.by_way(declared)
    probed = _answer(probe, run) if ways else None
    if probed is None:
        return declared
    others = {way: empty_rows.value_of(probed, way) for way in empty_rows.WAYS if run.offers(way)}
    known = {way: value for way, value in others.items() if value != empty_rows.UNDECIDED}
    apart = {pair: value for pair, value in empty_rows.by_way(probed).items() if pair in empty_rows.PAIRS}
    return empty_rows.joined({**known, **apart, **ways})


def _size(run: Run) -> int:
    """A head size that the implementation takes: the smallest from 1 up, as both key and value size."""
    sizes = {"B": 1, "H": 1, "G": 1, "Q": 2, "K": 3}
    return next(
        (
            d
            for d in (1, 2, 4, 8, 16, 32, 64, 128)
            if run.implementation.accepts({**sizes, "D": d, "E": d}) is None
        ),
        64,
    )


def _problem(
    run: Run, *, queries: int = 2, keys: int = 3, batch: int = 1, seed: int | None = None, **options: Any
) -> Problem:
    """Zero scores unless `seed` is given, and values 1, 2, 4, ...: the output tells which keys were averaged."""
    size, dtype = _size(run), run.numpy_dtype
    options = {**dict.fromkeys(run.implementation.always, True), **options}
    shape = (batch, 1, keys, size)
    if seed is None:
        query, key = np.zeros((batch, 1, queries, size), dtype), np.zeros(shape, dtype)
        value = np.broadcast_to(np.exp2(np.arange(keys))[:, None], shape).astype(dtype)
    else:
        rng = np.random.default_rng(seed)
        query = rng.standard_normal((batch, 1, queries, size)).astype(dtype)
        key, value = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    return Problem(query=query, key=key, value=value, **options)


def _causal_alignment(run: Run) -> str | None:
    if not run.offers("causal"):
        return None
    fewer = {"B": 1, "H": 1, "G": 1, "Q": 2, "K": 3}
    if run.implementation.accepts(fewer) or run.implementation.refuses(fewer, {"causal": True}):
        # The second of three queries sees one of two keys, or both.
        output = run.values(_problem(run, queries=3, keys=2, causal=True))[0, 0, 1, 0].astype(np.float64)
        return _nearest(float(output), {1.0: "bottom-right", 1.5: "top-left"})
    output = run.values(_problem(run, causal=True))[0, 0, 0, 0].astype(np.float64)
    return _nearest(
        float(output), {1.0: "top-left", 1.5: "bottom-right"}
    )  # the first query saw one key, or two


def _empty_rows(run: Run) -> str | None:
    """A row is hidden from every key, by each of the ways that are offered, and by two of them together."""
    probed = {way: _answer(partial(_empty_row, way), run) for way in empty_rows.WAYS if run.offers(way)}
    values = {way: value for way, value in probed.items() if value}
    apart = shared_empty_rows.differing(run, probed, partial(_problem, run, queries=3, keys=3))
    return empty_rows.joined({**values, **dict.fromkeys(apart, empty_rows.UNDECIDED)}) or None


# One query at least sees no key; and two keys tell a mean from a copy.
HIDDEN: Mapping[str, Mapping[str, Any]] = {
    "mask": {"mask": np.array([[[[True] * 3, [False] * 3]]])},
    "bias": {"bias": np.array([[[[0.0] * 3, [-np.inf] * 3]]])},
    "key_lengths": {"key_lengths": np.array([0], np.int32)},
    "causal": {"causal": True, "queries": 3, "keys": 2},
    "window": {"window": (0, 0), "queries": 3, "keys": 2},
}


def _empty_row(way: str, run: Run) -> str | None:
    """What a row that sees no key gets; None where this way hides none, or the sizes that it takes are refused."""
    hidden = dict(HIDDEN[way])
    if way in hidden and "Q" not in mask_forms.axes_of(run.implementation.mask_form):
        hidden[way] = hidden[way][:, :, 1:]  # all rows alike
    if way in ("mask", "bias") and run.implementation.accepts({"Q": 2, "K": 3}):  # as many queries as keys
        hidden["queries"] = 3
        if hidden[way].shape[2] > 1:
            hidden[way] = np.concatenate([hidden[way][:, :, :1], hidden[way]], axis=2)
    if way == "bias":
        hidden["bias"] = hidden["bias"].astype(run.numpy_dtype)
    problem = _problem(run, causal_alignment=run.semantics["causal_alignment"], **hidden)
    rows = np.flatnonzero(~problem.some_visible[0, 0])
    if not rows.size or run.implementation.accepts(problem.sizes) is not None:
        return None
    row = int(rows[-1])
    output = float(run.values(problem)[0, 0, row, 0].astype(np.float64))
    if np.isnan(output) or output == 0:
        return "nan" if np.isnan(output) else "zero"
    if not all(_mean_at(scores, problem, row, run) for scores in (1.0, 2.0**12)):
        return empty_rows.UNDECIDED
    return _answer(partial(_even_row, hidden, row), run) or "uniform"


def _mean_at(score: float, problem: Problem, row: int, run: Run) -> bool:
    """Whether such a row gets the mean of all values also where the scores differ by so much: where a finite number is added to
    hidden scores, what is left of these still counts."""
    root = np.sqrt(score)
    steps = np.resize([0.0, root, -root], problem.key.shape[2])[:, None]
    query = np.full(problem.query.shape, root, problem.query.dtype)
    key = np.broadcast_to(steps, problem.key.shape).astype(problem.key.dtype)
    mean = float(problem.value[0, 0, :, 0].astype(np.float64).mean())
    output = float(run.values(problem.replace(query=query, key=key))[0, 0, row, 0].astype(np.float64))
    return abs(output - mean) < 1 / 12


def _even_row(hidden: Mapping[str, Any], row: int, run: Run) -> str:
    """Whether such a row passes gradients on, as it does where what hides a key was added to its score."""
    if not run.offers("gradients"):
        return "uniform"
    problem = _problem(run, seed=2, **hidden)
    upstream = np.random.default_rng(3).standard_normal((*problem.query.shape[:3], problem.sizes["E"]))
    gradients = run.gradient_values(problem.replace(upstream=upstream.astype(run.numpy_dtype)))
    return "uniform with gradients" if gradients["query"][0, 0, row].any() else "uniform"


def _masked_values(run: Run) -> str | None:
    """NaN in the last key and value, which no query may see."""
    if run.offers("mask"):
        hidden: dict[str, Any] = {"mask": np.array([[[[True, True, False]]]])}
    elif run.offers("key_lengths"):
        hidden = {"key_lengths": np.array([2], np.int32)}
    elif run.offers("causal"):
        hidden = {"causal": True}
    else:
        return None
    clean = _problem(run, queries=2 if "causal" not in hidden else 1, **hidden)
    key, value = clean.key.copy(), clean.value.copy()
    key[..., -1, :] = value[..., -1, :] = np.nan
    if "causal" in hidden and run.semantics["causal_alignment"] == "bottom-right":
        clean = _problem(run, queries=3, causal=True)
        got = run.values(clean.replace(key=key, value=value))[:, :, :2]
    else:
        got = run.values(clean.replace(key=key, value=value))
    return "read" if np.isnan(got.astype(np.float64)).any() else "ignored"


def _deterministic(run: Run) -> str | None:
    problem = _problem(run, queries=17, keys=33, seed=1)
    first = run.values(problem)
    return "yes" if all(np.array_equal(first, run.values(problem)) for _ in range(3)) else "no"


def _batch_invariant(run: Run) -> str | None:
    problem = _problem(run, queries=17, keys=33, batch=3, seed=1)
    together = run.values(problem)
    alone = [
        run.values(problem.replace(**{n: getattr(problem, n)[b : b + 1] for n in ("query", "key", "value")}))
        for b in range(3)
    ]
    return "yes" if np.array_equal(together, np.concatenate(alone)) else "no"


def _empty_lse(run: Run) -> str | None:
    if not run.offers("return_lse"):
        return None
    if run.offers("mask"):
        hidden: dict[str, Any] = {"mask": np.zeros((1, 1, 1, 3), bool)}
    elif run.offers("key_lengths"):
        hidden = {"key_lengths": np.array([0], np.int32)}
    else:
        return None
    lse = float(run.outputs(_problem(run, return_lse=True, **hidden))[1][0, 0, 0])
    return "-inf" if lse == -np.inf else "finite" if lse <= HARDLY_A_SCORE else None


def _lse(run: Run) -> str | None:
    if not run.offers("return_lse"):
        return None
    lse = float(run.outputs(_problem(run, return_lse=True))[1][0, 0, 0])
    return _nearest(lse, {float(np.log(3)): "natural", float(np.log2(3)): "base2"})


def mismatched(problem: Problem, which: str) -> Problem:
    """The problem with a key or value that is too long, too wide, or of twice as many batch entries."""
    changed, axis = MISMATCHES[which]
    return problem.replace(**{n: np.concatenate([getattr(problem, n)] * 2, axis) for n in changed})


MISMATCHES: Mapping[str, tuple[tuple[str, ...], int]] = {
    "value longer": (("value",), 2), "key longer": (("key",), 2), "key wider": (("key",), 3),
    "batches differ": (("key", "value"), 0),
}  # fmt: skip


def _mismatched_sizes(run: Run) -> str | None:
    """ "cut" if an undeclared function leaves out what is too long, wherever it does not raise. Whoever declares an
    implementation has read that it must raise, or declares otherwise."""
    if run.implementation.declared or run.implementation.compiles:
        return None
    problem, returned = _problem(run, keys=3, batch=2, seed=4), 0
    if problem.sizes["D"] == 1:
        wider = {name: np.concatenate([getattr(problem, name)] * 2, 3) for name in ("query", "key", "value")}
        problem = problem.replace(**wider)
    for which in MISMATCHES:
        try:
            got = run.values(mismatched(problem, which))
        except ContractError:
            return None
        except Exception:  # as it should be
            continue
        exact = run.bound(problem)[0]
        if not (np.abs(got.astype(np.float64) - exact.value) <= exact.errors).all():
            return None
        returned += 1
    return "cut" if returned else None


def _exponent(run: Run) -> str | None:
    """ "contracted" if a score that is far above all others gets their weight, but not where it is so large that a unit roundoff
    of it is a large exponent; and gets it there too if it is a power of two, whose product with a constant is not rounded."""
    if run.dtype == "float16" or run.implementation.compiles:
        return None  # such scores are beyond its range
    exponent = 60 if run.precision.accumulate.unit > 2.0**-30 else 100

    def weight_is_whole(first: float, second: float) -> bool:
        problem = _problem(run, seed=0)
        query, key = np.zeros_like(problem.query), np.zeros_like(problem.key)
        query[..., 0], key[:, :, 0, 0] = first, second
        output = run.values(problem.replace(query=query, key=key)).astype(np.float64)
        return bool((output == problem.value[:, :, :1].astype(np.float64)).all())

    half = 2.0 ** (exponent // 2)
    mantissas = [(1.25, 1.5), (1.5, 1.75), (1.125, 1.375), (1.75, 1.625)]
    if all(weight_is_whole(x * half, y * half) for x, y in mantissas) or not weight_is_whole(half, half):
        return None
    root = 2.0 ** int(np.log2(replace(run.precision, contracted=True).largest_score) / 2 - 2)
    bounded = Run(run.implementation, run.device, run.dtype, run.semantics)
    for x, y in mantissas:
        problem = _problem(run, seed=0)
        query, key = np.zeros_like(problem.query), np.zeros_like(problem.key)
        query[..., 0], key[:, :, 0, 0] = x * root, y * root
        problem = problem.replace(query=query, key=key)
        output = bounded(problem)
        if not np.isfinite(output.value).all() or not _within(output, bounded.exact(problem)):
            return None
    return "contracted"


def _nearest(measured: float, meanings: Mapping[float, str]) -> str | None:
    """The meaning whose number is nearest to what was found; None for NaN."""
    return None if np.isnan(measured) else meanings[min(meanings, key=lambda number: abs(number - measured))]


PROBES: Mapping[str, Callable[[Run], str | None]] = {
    "causal_alignment": _causal_alignment,
    "empty_rows": _empty_rows,
    "masked_values": _masked_values,
    "deterministic": _deterministic,
    "batch_invariant": _batch_invariant,
    "lse": _lse,
    "empty_lse": _empty_lse,
    "mismatched_sizes": _mismatched_sizes,
    "exponent": _exponent,
}


def _output_rounding(implementation: Implementation, run: Run) -> dict[str, Choice]:
    """The precision: one of `FUSED` where random problems hold to a fused kernel's bound, else "eager" (every operation rounds).
    And what a fused kernel rounds besides."""
    declared = implementation.declared_precision(run.device, run.dtype)
    if declared is not None:
        named = declared if isinstance(declared, str) else "declared"
        return {"precision": Choice(named, "declared"), **_further_in_output(run, None)}
    # The errors of an exact exponential and of an output that is cut off look like a curve, too.
    fast = _answer(_fast_exponential, run) == "fast" and looser_models.explains(_judged(run, FUSED[1]))
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
    further = list(further_roundings.of_output(run, _size(run)))
    return _earned(run, model, further, pairs, lambda semantics: _exceeded(run, model, semantics) <= 1)


def _further_in_gradients(run: Run, precision: Choice) -> dict[str, Choice]:
    def pairs(judged: Run, problem: Problem) -> Pairs:
        exact = judged.exact_gradients(problem)
        return [(got, exact[name]) for name, got in judged.gradients(problem).items()]

    model = (
        run.gradient_precision if precision.how == "declared" else Precision.named(precision.value, run.dtype)
    )
    further = further_roundings.of_steps if model.op_by_op else further_roundings.of_gradients
    return _earned(run, model, list(further(run, _size(run))), pairs)


def _earned(run: Run, model: Precision, further: Sequence[tuple[str, str, list[Problem]]],
            pairs: Callable[[Run, Problem], Pairs],
            also: Callable[[Mapping[str, str]], bool] = lambda semantics: True) -> dict[str, Choice]:  # fmt: skip
    """The first of several further roundings without which the bounds do not hold on its own problems, and with which they hold
    on all of them and `also` elsewhere. What is believed is noted in the semantics of the run.

    Nothing of what is declared, and where a call raises.
    """

    def hold(problems: Sequence[Problem], extra: Mapping[str, str]) -> bool | None:
        judged = Run(run.implementation, run.device, run.dtype, {**run.semantics, **extra}, model, model)
        return _answer(
            lambda _: all(_within(*pair) for problem in problems for pair in pairs(judged, problem)), run
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


def _within(got: Bounded, exact: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return not (np.abs(got.value - exact) > got.errors).any()


def _judged(run: Run, model: str) -> Run:
    """The same run under a model of rounding."""
    precision = Precision.named(model, run.dtype)
    return Run(run.implementation, run.device, run.dtype, run.semantics, precision, precision)


def _statement(model: str, exceeded: float | None, tight: Run, loose: Run, *, gradients: bool = False) -> str:
    """See `looser_models.statement`; the sizes are of the kind that most calls have."""
    problem = _problem(tight, queries=16, keys=64, seed=0)
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
        problem = _problem(run, queries=16, keys=16, seed=seed, **options)
        # The keys lie close together, so that every weight counts.
        key = (8 + problem.key.astype(np.float64) / 8).astype(run.numpy_dtype)
        problem = problem.replace(query=problem.query * run.numpy_dtype(4), key=key)
        try:
            largest = max(largest, _margin(run(problem), run.exact(problem)))
        except Exception:  # as in _answer
            return largest
    return largest


FUSED = ("fused", "fused-fast-exp")


def _fast_exponential(run: Run) -> str:
    """Of half precision: "fast" or "right". Where asking would take a minute, "right"."""
    slow = run.implementation.slow(run.device)
    return "fast" if not slow and fast_exponential.is_fast(run, _size(run)) else "right"


def _left_out(implementation: Implementation, run: Run) -> dict[str, Choice]:
    """What the function means by options that it is not given. Of one that it takes nothing is said if that is the usual."""
    if implementation.operation == "alibi_slopes":
        return {"heads": Choice(value, "detected")} if (value := _answer(heads, run)) else {}
    described = DESCRIBED[implementation.operation]
    defaults = described.defaults
    if "layout" in defaults:
        value = _answer(layout, run)
        values = {"layout": value} if value else {}
    else:
        values = (_answer(norms, run) or {}) if defaults else {}
    return {
        name: Choice(value, "detected")
        for name, value in values.items()
        if (not run.offers_parameter(name) and name in described.options) or value != word(defaults[name][0])
    }


def _rounding(implementation: Implementation, run: Run) -> dict[str, Choice]:
    """How another operation rounds, where that is not declared: of half precision and of angles in float64."""
    if run.dtype == "float64":
        has_angles = "layout" in DESCRIBED[implementation.operation].defaults
        narrow = _answer(operation_rounding.angles, run) if has_angles else None
        return {"angles": Choice(narrow, "detected")} if narrow else {}
    if run.dtype == "float32" or implementation.declared_precision(run.device, run.dtype) is not None:
        return {}
    fast = implementation.operation in fast_exponential.OF and _answer(_fast_exponential, run) == "fast"
    fused = FUSED[fast]
    models = {"precision": _answer(partial(operation_rounding.precision, fused=fused), run) or fused}
    if run.offers("gradients") and f"{run.dtype}-gradients" not in implementation.precision:
        # As of attention: where the result is rounded operation by operation, the gradients are.
        gradient_model = (
            _answer(partial(operation_rounding.gradient_precision, fused=FUSED[0]), run)
            if models["precision"] in FUSED
            else None
        )
        models["gradient_precision"] = gradient_model or models["precision"]
    steps: dict[str, Choice] = {}
    if models.get("gradient_precision") == "eager" and "softmax_gradient" not in implementation.semantics:
        way = _answer(operation_rounding.softmax_gradient, run)
        steps = {"softmax_gradient": Choice(way, "detected")} if way else {}
    # A fused kernel is the usual case, of which nothing is said.
    return steps | {
        name: Choice(value, "detected")
        for name, value in models.items()
        if set(models.values()) != {FUSED[0]}
    }


def _gradient_conventions(implementation: Implementation, run: Run, forward: Choice) -> dict[str, Choice]:
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
        problem = _with_upstream(problem)
        exact = judged.exact_gradients(problem)
        return [(got, exact[name]) for name, got in judged.gradients(problem).items()]

    exceeded = _largest_margin(pairs, judged)
    return (Choice("eager", "detected") if exceeded > 1 else replace(forward, looser="")), exceeded


def _largest_margin(pairs: Callable[[Problem], list[tuple[Bounded, np.ndarray]]], run: Run) -> float:
    """The largest error of forty random problems as a multiple of the bound that the run carries; 0 once the function raises."""
    largest = 0.0
    for seed in range(40):
        # Over many keys the output is small, and what a rounded output excuses with it.
        problem = _problem(run, queries=5, keys=(7, 33, 257)[seed % 3], seed=seed)
        try:
            compared = pairs(problem)
        except Exception:  # as in _answer
            return 0.0
        largest = max([largest, *(_margin(got, exact) for got, exact in compared)])
    return largest


def _margin(got: Bounded, exact: np.ndarray) -> float:
    """The largest error as a multiple of its bound."""
    error = np.abs(got.value - exact)
    margins = np.divide(error, got.errors, out=np.where(error > 0, np.inf, 0.0), where=got.errors > 0)
    return float(np.max(margins, initial=0.0, where=margins > 0))
