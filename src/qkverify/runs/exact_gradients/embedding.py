"""What is exact of the gradients of embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qkverify.reference.positions_vjp import embedding_vjp
from qkverify.rounding import Bounded
from qkverify.runs.run import Run


def gradients(
    run: Run, upstream: np.ndarray, tokens: np.ndarray, table: np.ndarray, **_: Any
) -> Mapping[str, Bounded]:
    """upstream (B,L,M); neither the layout nor the padding has a part in it."""
    precision, root = run.gradient_precision, table.shape[1] ** 0.5
    scale = Bounded(root, root * precision.accumulate.unit, precision)
    above = run.bounded(upstream, precision)
    return {"table": embedding_vjp(tokens, len(table), above, scale=scale)}
