"""What is exact of the gradients of softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qkverify.reference.softmax import softmax, softmax_vjp, softmax_vjp_in_steps
from qkverify.rounding import Bounded
from qkverify.runs.run import Run


def gradients(run: Run, upstream: np.ndarray, scores: np.ndarray) -> Mapping[str, Bounded]:
    """From the probabilities as they were stored, as frameworks do, or from unrounded ones, whose bound is less; or in steps."""
    precision = run.gradient_precision
    if run.semantics.get("softmax_gradient") == "steps":
        steps: Any = softmax_vjp_in_steps(run.bounded(scores, precision), run.bounded(upstream, precision))
        return {"scores": np.positive(steps)}
    stored: Any = np.positive(softmax(run.bounded(scores, precision)))
    gradient: Bounded = np.positive(softmax_vjp(stored, run.bounded(upstream, precision)))
    return {"scores": gradient}
