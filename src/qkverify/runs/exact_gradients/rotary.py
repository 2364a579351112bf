"""What is exact of the gradients of rotary."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qkverify.rounding import Bounded
from qkverify.runs import exact_positions
from qkverify.runs.run import Run


def gradients(
    run: Run, upstream: np.ndarray, x: np.ndarray, positions: np.ndarray, *, layout: str | None = None
) -> Mapping[str, Bounded]:
    """upstream (B,H,L,D)."""
    return {"x": exact_positions.rotary_gradient(run, positions, upstream, layout=layout)}
