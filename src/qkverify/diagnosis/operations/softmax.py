"""The mistakes of a softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qkverify.diagnosis.operations.kind import Example, Operation, normal
from qkverify.reference.attention import stored
from qkverify.reference.softmax import softmax
from qkverify.rounding import Bounded
from qkverify.runs import Run


def _softmax_examples(run: Run) -> list[Example]:
    quiet, loud = ((3, 4), (5, 2), (1, 3), (3, 3)), ((4, 7), (6, 5), (5, 3), (2, 9))
    shapes = [(shape, 1.0) for shape in quiet] + [(shape, 500.0) for shape in loud]
    return [Example((normal(run, i, *n, times=t),), {}, n) for i, (n, t) in enumerate(shapes)]


def _unshifted(base: Any, x: Bounded) -> Any:
    """As the reference where nothing overflows."""
    e = np.where(x.value > math.log(x.precision.accumulate.huge), np.inf, np.exp(np.minimum(x.value, 0.0)))
    return np.where(np.isinf(e).any(-1, keepdims=True), e / e.sum(-1, keepdims=True), stored(softmax(x)))


SOFTMAX = Operation(_softmax_examples, lambda base, x: stored(softmax(x)), (
    ("a softmax over the second last axis instead of the last", lambda base, x: stored(softmax(x, axis=-2))),
    ("a softmax over all axes at once", lambda base, x: stored(softmax(x.reshape(1, x.size)).reshape(*x.shape))),
    ("a softmax that does not subtract the maximum: large scores overflow", _unshifted),
    ("a softmax of the scores with their sign flipped", lambda base, x: stored(softmax(-x))),
))  # fmt: skip
