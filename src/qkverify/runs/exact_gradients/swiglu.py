"""What is exact of the gradients of SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qkverify.reference.gated import swiglu_vjp
from qkverify.rounding import Bounded
from qkverify.runs.run import Run


def gradients(run: Run, upstream: np.ndarray, *arrays: np.ndarray) -> Mapping[str, Bounded]:
    """upstream (B,L,M), x and the weights in the order of the operation."""
    given = [run.bounded(x, run.gradient_precision) for x in (*arrays, upstream)]
    exact: Mapping[str, Bounded] = swiglu_vjp(*given)
    return exact
