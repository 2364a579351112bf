"""The mistakes of a cross entropy with smoothed labels, and of its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import (
    Array,
    Compute,
    Example,
    Gradients,
    Mistakes,
    OperationKind,
    normal,
)
from qkverify.reference.attention import stored
from qkverify.reference.losses import cross_entropy, cross_entropy_vjp, smoothed
from qkverify.reference.softmax import log_sum_exp, softmax
from qkverify.runs.run import Run

Target = Callable[[Array, int, Any], Any]  # targets (N), classes C, smoothing -> (N,C)


def _examples(run: Run) -> list[Example]:
    """Scores (N,C) and targets (N); the last ones pass the range of the exponential."""
    over = 2 * math.log(run.precision.accumulate.huge)
    sizes = [
        (3, 4, 0.1),
        (5, 2, 0.0),
        (2, 7, 0.3),
        (6, 5, 0.5),
        (4, 3, 0.0),
        (1, 6, 0.1),
        (4, 11, 1.0),
        (3, 5, 0.0),
    ]
    examples = []
    for i, (tokens, classes, smoothing) in enumerate(
        [*sizes, (3, 4, 0.1), (5, 3, 0.2), (4, 5, 0.0), (2, 6, 0.0)]
    ):
        scores, loud = normal(run, i, tokens, classes, times=2.0), i >= len(sizes)
        if loud:
            scores[:, i % classes] = over
        targets = np.random.default_rng(i).integers(0, classes, tokens)
        examples.append(Example((scores, targets), {"smoothing": smoothing}, (tokens,)))
    return examples


def _shares(of_target: Callable[[Any, int], Any], of_others: Callable[[Any, int], Any]) -> Target:
    """A target with one share for its class and another one for each of the others."""

    def target(targets: Array, classes: int, smoothing: Any) -> Any:
        chosen = np.where(np.arange(classes) == targets[:, None], 1.0, 0.0)
        return chosen * of_target(smoothing, classes) + (1.0 - chosen) * of_others(smoothing, classes)

    return target


TARGETS: tuple[tuple[str, Target], ...] = (
    ("a target that keeps 1 on its class, the smoothing coming on top of it",
     _shares(lambda s, c: 0.0 * s + 1.0, lambda s, c: s / c)),
    ("a target of 1 - smoothing on its class, which gets no share of the smoothing",
     _shares(lambda s, c: 1.0 - s, lambda s, c: s / c)),
    ("smoothing that is spread over the C - 1 other classes instead of all C",
     _shares(lambda s, c: 1.0 - s, lambda s, c: s / max(c - 1, 1))),
    ("smoothing that every other class gets whole", _shares(lambda s, c: 1.0 - s, lambda s, c: s)),
    ("a target without smoothing", _shares(lambda s, c: 0.0 * s + 1.0, lambda s, c: 0.0 * s)),
    ("smoothing and 1 - smoothing exchanged", _shares(lambda s, c: s + (1.0 - s) / c, lambda s, c: (1.0 - s) / c)),
    ("the class after the right one for its target",
     lambda t, c, s: smoothed((t + 1) % c, c, s)),
)  # fmt: skip


def _to(target: Target) -> Compute:
    def compute(scores: Any, targets: Array, *, smoothing: Any = 0.0) -> Any:
        logarithms = scores - log_sum_exp(scores)[:, None]
        return stored(-np.sum(target(targets, scores.shape[-1], smoothing) * logarithms, axis=-1))

    return compute


def _gradient_to(
    target: Target, change: Callable[[Any, Any], Any] = lambda difference, above: difference * above
) -> Compute:
    """The gradient with another target, or with another way from softmax - target and upstream (N,1) to it."""

    def compute(scores: Any, targets: Array, upstream: Any, *, smoothing: Any = 0.0) -> dict[str, Any]:
        difference = softmax(scores) - target(targets, scores.shape[-1], smoothing)
        return {"scores": stored(change(difference, upstream[:, None]))}

    return compute


def _beyond(lost: float) -> Compute:
    """As the reference, but where an exponential overflows infinite, and NaN with it where `lost` says so."""

    def compute(scores: Any, targets: Array, *, smoothing: Any = 0.0) -> Any:
        over = (scores.value > math.log(scores.precision.accumulate.huge)).any(-1)
        whole = np.ndim(smoothing) == 0 and float(getattr(smoothing, "value", smoothing)) == 0.0
        exact = cross_entropy(scores, targets, smoothing=smoothing)
        return np.where(over, lost if whole else np.inf, exact)

    return compute


def _divergence(scores: Any, targets: Array, *, smoothing: Any = 0.0) -> Any:
    """sum t (log t - log p), with 0 log 0 = 0."""
    target = smoothed(targets, scores.shape[-1], smoothing)
    value = target.value if hasattr(target, "value") else target
    inside = np.where(value > 0, target, 1.0)
    logarithms = np.log(inside) if hasattr(inside, "value") else np.log(np.asarray(inside))
    return stored(np.sum(target * logarithms, axis=-1) + cross_entropy(scores, targets, smoothing=smoothing))


def _mean(scores: Any, targets: Array, **options: Any) -> Any:
    losses = cross_entropy(scores, targets, **options)
    return stored(np.broadcast_to(np.sum(losses, axis=-1, keepdims=True) / len(targets), losses.shape))


MISTAKES: Mistakes = (
    *((f"the loss to {text}" if text.startswith("a target") else f"the loss with {text}", _to(target))
      for text, target in TARGETS),
    ("the loss of probabilities, whose softmax is taken twice",
     lambda s, t, **o: cross_entropy(softmax(s), t, **o)),
    ("a loss that does not subtract the maximum: large scores overflow", _beyond(np.nan)),
    ("a loss that does not subtract the maximum: large scores overflow", _beyond(np.inf)),
    ("the divergence to the smoothed target, which is the loss less the target's entropy", _divergence),
    ("the loss in bits, with logarithms to base 2", lambda *a, **o: stored(cross_entropy(*a, **o) * (1 / math.log(2)))),
    ("the loss with its sign flipped", lambda *a, **o: stored(-cross_entropy(*a, **o))),
    ("the loss divided by the number of classes", lambda s, t, **o: stored(cross_entropy(s, t, **o) / s.shape[-1])),
    ("the mean loss of all tokens, for each of them", _mean),
    ("the loss divided by the number of tokens", lambda s, t, **o: stored(cross_entropy(s, t, **o) / len(t))),
)  # fmt: skip

GRADIENTS = Gradients(("scores",), lambda *a, **o: {"scores": cross_entropy_vjp(*a, **o)}, (
    *((f"those to {text}" if text.startswith("a target") else f"those with {text}", _gradient_to(target))
      for text, target in TARGETS),
    ("those with their sign flipped", _gradient_to(smoothed, lambda difference, above: -(difference * above))),
    ("those for an upstream gradient of one", _gradient_to(smoothed, lambda difference, above: difference)),
    ("those of the mean over the tokens instead of the loss of each",
     _gradient_to(smoothed, lambda difference, above: difference * above / above.shape[0])),
    ("those of the loss with the softmax left out: minus the target",
     lambda s, t, above, *, smoothing=0.0: {"scores": stored(-smoothed(t, s.shape[-1], smoothing) * above[:, None])}),
    ("those of the loss with the target left out: the softmax",
     lambda s, t, above, *, smoothing=0.0: {"scores": stored(softmax(s) * above[:, None])}),
))  # fmt: skip

KIND = OperationKind(_examples, cross_entropy, MISTAKES, (
    ("with smoothing", lambda e: bool(e.options["smoothing"])), ("with one token", lambda e: len(e.arguments[1]) == 1),
), GRADIENTS)  # fmt: skip
