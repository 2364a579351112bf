"""What is exact of the cross entropy in one run, with bounds that hold for either way of computing it.

Where every operation rounds, the way matters: the target may be spread over the classes before the logarithms are summed, or
their sum, which in float16 can pass the largest number, may be divided afterwards. The gradient may be softmax minus target
times the upstream gradient, or that of the logarithms first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.reference.losses import cross_entropy as reference_loss
from qkverify.reference.losses import cross_entropy_vjp, smoothed
from qkverify.reference.softmax import log_sum_exp
from qkverify.rounding import Bounded, Precision
from qkverify.runs.run import Run

Array = np.ndarray


def cross_entropy(run: Run, scores: Array, targets: Array, *, smoothing: float | None = None) -> Bounded:
    """scores (N,C), targets (N) -> (N)."""
    given, share = run.bounded(scores), _share(smoothing, run.precision)
    spread = reference_loss(given, targets, smoothing=share)
    logarithms = _logarithms(given)
    total: Any = np.sum(logarithms, axis=-1)
    chosen = logarithms[np.arange(len(targets)), targets]
    divided = np.positive(-(chosen * (1.0 - share)) - total * (share / scores.shape[-1]))
    return _either(spread, divided)


def gradient(
    run: Run, upstream: Array, scores: Array, targets: Array, *, smoothing: float | None = None
) -> Bounded:
    """The gradient of sum(upstream * cross_entropy) in the scores, upstream (N): (N,C)."""
    precision = run.gradient_precision
    given, above = run.bounded(scores, precision), run.bounded(upstream, precision)
    share = _share(smoothing, precision)
    of_scores = cross_entropy_vjp(given, targets, above, smoothing=share)
    probabilities: Any = np.exp(_logarithms(given))
    of_target = smoothed(targets, scores.shape[-1], share) * above[:, None]
    total = np.sum(of_target, axis=-1, keepdims=True)
    of_logarithms = np.positive(probabilities * total - of_target)
    return _either(of_scores, of_logarithms)


def _share(smoothing: float | None, precision: Precision) -> Bounded:
    """Rounded to the working precision, as a number that is no array is."""
    share = smoothing or 0.0
    return Bounded(share, np.asarray(abs(share) * precision.accumulate.unit), precision)


def _logarithms(scores: Any) -> Any:
    """Of the probabilities, (N,C)."""
    return scores - log_sum_exp(scores)[:, None]


def _either(first: Bounded, second: Bounded) -> Bounded:
    """The first, with a bound that holds for both."""
    return Bounded(first.value, np.maximum(first.errors, second.errors), first.precision, first.unit)
