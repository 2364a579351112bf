"""The diagnosis of dropout: with V = I the output is the weights, so a call shows what it has dropped and how it scaled the rest.

Which weights go is a random number and nothing here needs to know the generator. What is left must be a multiple of its weight,
within its bound; the share that is gone must be the predicted one, by Hoeffding's inequality; and both for every share that is
asked for, or nothing is said. The table holds both as functions of the share p.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.fitting import Array, agrees
from qkverify.counterexamples.diagnosis.observing import fresh
from qkverify.errors import UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import weights as weights_of
from qkverify.reference.groups import per_key_head, per_query_head
from qkverify.reference.scores import factor, scores
from qkverify.rounding import Bounded, Precision
from qkverify.runs.run import Run

SHARES = (0.1, 0.25, 0.5, 0.9)
ODDS = 1e-12  # of a wrong sentence about a share
LETTERS = {"B": 2, "H": 3, "G": 3, "Q": 33, "K": 33, "D": 33, "E": 33}
Of = Callable[[float], float]  # a function of the share


def usual(p: float) -> float:
    return 1 / (1 - p)


def _asked(p: float) -> float:
    return p


def _none(p: float) -> float:
    return 0.0


MISTAKES: tuple[
    tuple[str, Of, Of], ...
] = (  # what, the factor of a weight that is kept, the share that is dropped
    ("divided by p instead of 1 - p where they are kept", lambda p: 1 / p, _asked),
    ("not divided by 1 - p where they are kept", lambda p: 1.0, _asked),
    ("multiplied by 1 - p instead of divided where they are kept", lambda p: 1 - p, _asked),
    ("multiplied by 1 + p instead of divided by 1 - p where they are kept", lambda p: 1 + p, _asked),
    ("divided by 1 - p twice where they are kept", lambda p: (1 - p) ** -2, _asked),
    ("kept with the probability p with which they should be dropped", usual, lambda p: 1 - p),
    ("kept with the probability p, and divided by it", lambda p: 1 / p, lambda p: 1 - p),
    ("not dropped although dropout was asked for", lambda p: 1.0, _none),
    ("divided by 1 - p and never dropped", usual, _none),
)
SAME: tuple[tuple[str, Callable[[Array, Array], bool]], ...] = (  # two masks (B,H,Q,K) of two calls
    ("all calls", lambda first, second: bool((first == second).all())),
    ("all batch entries", lambda first, second: bool((first == first[:1]).all())),
    ("all heads", lambda first, second: bool((first == first[:, :1]).all())),
    ("all queries", lambda first, second: bool((first == first[:, :, :1]).all())),
)
BACKWARD: tuple[
    tuple[str, Of, bool], ...
] = (  # what, the factor of a weight's gradient, whether the dropped ones get none
    ("multiplied by p instead of divided by 1 - p", lambda p: p, True),
    ("divided by p instead of 1 - p", lambda p: 1 / p, True),
    ("not divided by 1 - p", lambda p: 1.0, True),
    ("divided by 1 - p and not dropped", usual, False),
    ("neither dropped nor divided by 1 - p", lambda p: 1.0, False),
)


def unasked(run: Run, until: Deadline) -> str:
    """Weights that are dropped where no dropout, or one of zero, was asked for."""
    none, zero = (_dropped(*_drawn(run, until, **further)) for further in ({}, {"dropout": 0.0}))
    if none > 0:
        return f"Weights are dropped although no dropout was asked for: about {none:.0%} of them."
    return f"A dropout of zero drops weights all the same: about {zero:.0%} of them." if zero > 0 else ""


def _dropped(got: Array, exact: Bounded) -> float:
    """The share of weights that are zero, if that is dropout: the others are their weights times one and the same number, and
    heads and batch entries lose different ones. Otherwise 0: a kernel may have zeros for any reason."""
    gone = got == 0
    weight, error = exact.value, exact.errors
    if not gone.any() or gone.all() or not (weight > error).all() or (gone == gone[:1, :1]).all():
        return 0.0
    low, high = got / (weight + error), got / (weight - error)
    return float(gone.mean()) if low[~gone].max() <= high[~gone].min() else 0.0


def dropout(run: Run, until: Deadline) -> str:
    """What is wrong with dropout, or nothing. Raises TimeoutError once the time is up."""
    sentence = unasked(run, until)
    if sentence:
        return sentence
    samples = [(p, *_drawn(run, until, dropout=p)) for p in SHARES]
    made = [text for text, kept, share in MISTAKES if all(_fits(sample, kept, share) for sample in samples)]
    right = [_fits(sample, usual, _asked) for sample in samples]
    if made and len(made) == 1 and right.count(False) >= len(SHARES) - 1:
        return f"The result equals attention whose weights are {made[0]}."
    masks = [_drawn(run, until, dropout=0.5)[0] == 0 for _ in "12"]
    same = " and ".join(text for text, holds in SAME if holds(masks[0], masks[1])) if masks[0].any() else ""
    if same and all(right):
        return f"{same[:1].upper()}{same[1:]} drop the same weights."
    return _backward(run, until) if all(right) else ""


def _problem(run: Run, upstream: bool = False) -> Problem:
    """Weights of some size everywhere, which the output shows."""
    rng, s = np.random.default_rng(0), LETTERS
    shapes = {"query": (s["B"], s["H"], s["Q"], s["D"]), "key": (s["B"], s["G"], s["K"], s["D"])}
    arrays: dict[str, Any] = {n: rng.standard_normal(x).astype(run.numpy_dtype) for n, x in shapes.items()}
    identity = np.broadcast_to(np.eye(s["K"]), (s["B"], s["G"], s["K"], s["E"])).astype(run.numpy_dtype)
    above = (
        rng.standard_normal((s["B"], s["H"], s["Q"], s["E"])).astype(run.numpy_dtype) if upstream else None
    )
    return Problem(
        **arrays, value=identity, upstream=above, causal_alignment=run.semantics["causal_alignment"]
    )


def _drawn(run: Run, until: Deadline, **further: Any) -> tuple[Array, Bounded]:
    """What a call gave, (B,H,Q,K), and the weights with their bound."""
    if until.over:
        raise TimeoutError
    run, problem = fresh(run), _problem(run)
    return run.outputs(problem, **further)[0], run.bound(problem)[0]


def times(p: float, of: Of, precision: Precision) -> Bounded:
    """A factor that is rounded twice."""
    return Bounded(of(p), abs(of(p)) * 2 * precision.accumulate.unit, precision)


def _fits(sample: tuple[float, Array, Bounded], kept: Of, share: Of) -> bool:
    p, got, exact = sample
    weights = Bounded(exact.value, exact.errors, exact.precision) * times(p, kept, exact.precision)
    room = math.sqrt(math.log(2 / ODDS) / (2 * got.size)) if share(p) else 0.0
    gone = got == 0
    return bool((agrees(got, weights) | gone).all()) and bool(abs(gone.mean() - share(p)) <= room)


def _backward(run: Run, until: Deadline) -> str:
    """Gradients of query and key that treat the dropped weights in another way than the output does."""
    if not run.offers("gradients") or run.implementation.vjp is not None:
        return ""
    explained: dict[str, int] = {text: 0 for text, _, _ in BACKWARD}
    wrong = 0
    for p in SHARES:
        if until.over:
            raise TimeoutError
        problem, fresh_run = _problem(run, upstream=True), fresh(run)
        try:
            output, received = fresh_run.output_and_gradients(problem, dropout=p)
        except UnsupportedCase:  # two calls, which drop other weights
            return ""

        def alike(of: Of, masked: bool, p: float = p, problem: Problem = problem, output: Array = output,
                  received: dict[str, Array] = received) -> bool:  # fmt: skip
            precision, dropped = run.gradient_precision, output == 0
            kept = np.where(dropped, not masked, True) * times(p, of, precision)
            expected = gradients(run, problem, kept, np.where(dropped, 0.0, 1.0) * times(p, usual, precision))
            return all(
                agrees(received[n], Bounded(x.value, run.within(received[n], x).errors)).all()
                for n, x in expected.items()
            )

        wrong += not alike(usual, True)
        for text, of, masked in BACKWARD:
            explained[text] += alike(of, masked)
    made = [text for text, count in explained.items() if count == len(SHARES)]
    if len(made) != 1 or wrong < len(SHARES) - 1:
        return ""
    return f"The gradients are those where a weight's gradient is {made[0]}."


def gradients(run: Run, problem: Problem, kept: Any, output_factors: Any) -> dict[str, Bounded]:
    """Those of query, key and value, where `output_factors` multiplies the weights of the output and `kept` their gradients."""
    precision = run.gradient_precision.either_side(problem.scale or 1.0)
    query, key, value, above = (
        run.bounded(getattr(problem, n), precision) for n in ("query", "key", "value", "upstream")
    )
    heads, shared = query.shape[1], key.shape[1]
    options = {name: getattr(problem, name) for name in ("scale", "causal", "causal_alignment")}
    weights = weights_of(scores(query, key, **options))
    d_weights = above @ np.swapaxes(per_query_head(value, heads), -1, -2) * kept
    row = np.sum(weights * d_weights, axis=-1, keepdims=True)
    d_scores = weights * (d_weights - row) * factor(query.shape[-1], problem.scale)
    by_input = {"query": d_scores @ per_query_head(key, heads), "key": per_key_head(d_scores, query, shared),
             "value": per_key_head(weights * output_factors, above, shared)}  # fmt: skip
    return {name: +x for name, x in by_input.items()}
