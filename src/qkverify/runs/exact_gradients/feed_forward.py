"""What is exact of the gradients of feed forward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qkverify.reference.layers_vjp import feed_forward_vjp
from qkverify.rounding import Bounded
from qkverify.runs.run import Run


def gradients(run: Run, upstream: np.ndarray, *arrays: np.ndarray) -> Mapping[str, Bounded]:
    """upstream (B,L,M), x and the weights in the order of the operation."""
    given = [run.bounded(x, run.gradient_precision) for x in (*arrays, upstream)]
    exact: Mapping[str, Bounded] = feed_forward_vjp(*given)
    return exact
