"""The mistakes of a softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Example, OperationKind, normal
from qkverify.reference.attention import stored
from qkverify.reference.softmax import largest, log_sum_exp, softmax
from qkverify.rounding import Bounded
from qkverify.runs.run import Run


def _softmax_examples(run: Run) -> list[Example]:
    quiet, loud = ((3, 4), (5, 2), (1, 3), (3, 3)), ((4, 7), (6, 5), (5, 3), (2, 9))
    shapes = [(shape, 1.0) for shape in quiet] + [(shape, 500.0) for shape in loud]
    return [Example((normal(run, i, *n, times=t),), {}, n) for i, (n, t) in enumerate(shapes)]


def _unshifted(x: Bounded) -> Any:
    """As the reference where nothing overflows."""
    e = np.where(x.value > math.log(x.precision.accumulate.huge), np.inf, np.exp(np.minimum(x.value, 0.0)))
    return np.where(np.isinf(e).any(-1, keepdims=True), e / e.sum(-1, keepdims=True), stored(softmax(x)))


def _shifted_together(x: Bounded) -> Any:
    """As the reference, but a row whose exponentials all underflow is 0 / 0; of one that nearly does nothing is said."""
    below = x.value.max(-1, keepdims=True) - x.value.max()
    p, exact = x.precision.accumulate, stored(softmax(x))
    lost = below < math.log(p.tiny) + math.log(p.unit)
    value = np.where(lost, np.nan, exact.value)
    return Bounded(value, np.where(~lost & (below < math.log(p.tiny) / 2), np.inf, exact.errors), x.precision)


def _beside_one(x: Bounded) -> Any:
    """Beside one more score, of zero, which gets weight and is not there."""
    return stored(softmax(np.concatenate([x, 0.0 * x[..., :1]], axis=-1))[..., :-1])


KIND = OperationKind(_softmax_examples, lambda x: stored(softmax(x)), (
    ("a softmax over the second last axis instead of the last", lambda x: stored(softmax(x, axis=-2))),
    ("a softmax over all axes at once", lambda x: stored(softmax(x.reshape(1, x.size)).reshape(*x.shape))),
    ("a softmax that does not subtract the maximum: large scores overflow", _unshifted),
    ("a softmax that subtracts the maximum of all rows from each: rows far below it underflow", _shifted_together),
    ("a softmax of the scores with their sign flipped", lambda x: stored(softmax(-x))),
    ("a softmax to base 2, 2^s / sum 2^s", lambda x: stored(softmax(x * math.log(2)))),
    ("a softmax with one more in the denominator, exp(s) / (1 + sum exp(s))", _beside_one),
    ("exponentials that are not divided by their sum", lambda x: stored(np.exp(x - largest(x, -1)))),
    ("the logarithm of the softmax", lambda x: stored(x - log_sum_exp(x)[..., None])),
    ("a softmax of the softmax", lambda x: stored(softmax(softmax(x)))),
))  # fmt: skip
