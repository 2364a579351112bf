"""Mistakes that layer norm and RMS norm share: which numbers a row is divided by, and what its weight is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Example, normal
from qkverify.runs.run import Run

Array = np.ndarray
# x (..., M) and what is added inside of the root -> (x as it is scaled, what it is divided by)
Scaled = Callable[[Any, Any], tuple[Any, Any]]


def examples(run: Run, weights: int) -> list[Example]:
    """x (B,L,M) of ordinary and of small numbers, and so many weights (M,)."""
    sizes = [
        (2, 3, 5, 1.0),
        (3, 4, 7, 2.0**-8),
        (1, 2, 4, 1.0),
        (2, 5, 9, 2.0**-8),
        (4, 2, 33, 1.0),
        (2, 3, 6, 2.0**-9),
    ]
    made = []
    for i, (batch, length, wide, times) in enumerate(sizes):
        width = run.implementation.clamped("M", wide)
        shape = (batch, length, width)[-run.implementation.clamped("axes", 3) :]
        x = normal(run, 10 * i, *shape, times=times)
        rows = [normal(run, 10 * i + j, width) for j in range(1, weights + 1)]
        made.append(Example((x, *rows), {"eps": 1e-3 if i % 3 == 2 else 1e-5}, shape))
    return made


def mean(x: Any, axis: Any = -1) -> Any:
    """Over one axis or several, which stay."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    count = int(np.prod([x.shape[a] for a in axes]))
    return np.sum(x, axis=axis, keepdims=True) / count


def root(x: Any, eps: Any) -> Any:
    return np.sqrt(mean(x * x) + eps)
