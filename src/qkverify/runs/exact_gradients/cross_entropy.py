"""What is exact of the gradients of cross entropy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qkverify.rounding import Bounded
from qkverify.runs import exact_losses
from qkverify.runs.run import Run


def gradients(
    run: Run, upstream: np.ndarray, scores: np.ndarray, targets: np.ndarray, *, smoothing: float | None = None
) -> Mapping[str, Bounded]:
    """upstream (N)."""
    return {"scores": exact_losses.gradient(run, upstream, scores, targets, smoothing=smoothing)}
