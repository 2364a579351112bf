"""What is exact of the gradients of operations that are one formula, under the precision of a run's gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qkverify.reference.layers_vjp import feed_forward_vjp
from qkverify.reference.positions_vjp import embedding_vjp
from qkverify.reference.softmax import softmax, softmax_vjp, softmax_vjp_in_steps
from qkverify.rounding import Bounded
from qkverify.runs import exact_losses, exact_positions
from qkverify.runs.run import Run

Array = np.ndarray
Gradients = Mapping[str, Bounded]


def of_softmax(run: Run, upstream: Array, scores: Array) -> Gradients:
    """From the probabilities as they were stored, as frameworks do, or from unrounded ones, whose bound is less; or in steps."""
    precision = run.gradient_precision
    if run.semantics.get("softmax_gradient") == "steps":
        steps: Any = softmax_vjp_in_steps(run.bounded(scores, precision), run.bounded(upstream, precision))
        return {"scores": np.positive(steps)}
    stored: Any = np.positive(softmax(run.bounded(scores, precision)))
    gradient: Bounded = np.positive(softmax_vjp(stored, run.bounded(upstream, precision)))
    return {"scores": gradient}


def of_cross_entropy(
    run: Run, upstream: Array, scores: Array, targets: Array, *, smoothing: float | None = None
) -> Gradients:
    """upstream (N)."""
    return {"scores": exact_losses.gradient(run, upstream, scores, targets, smoothing=smoothing)}


def of_embedding(run: Run, upstream: Array, tokens: Array, table: Array, **_: Any) -> Gradients:
    """upstream (B,L,M); neither the layout nor the padding has a part in it."""
    precision, root = run.gradient_precision, table.shape[1] ** 0.5
    scale = Bounded(root, root * precision.accumulate.unit, precision)
    above = run.bounded(upstream, precision)
    return {"table": embedding_vjp(tokens, len(table), above, scale=scale)}


def of_rotary(
    run: Run, upstream: Array, x: Array, positions: Array, *, layout: str | None = None
) -> Gradients:
    """upstream (B,H,L,D)."""
    return {"x": exact_positions.rotary_gradient(run, positions, upstream, layout=layout)}


def of_feed_forward(run: Run, upstream: Array, *arrays: Array) -> Gradients:
    """upstream (B,L,M), x and the weights in the order of the operation."""
    given = [run.bounded(x, run.gradient_precision) for x in (*arrays, upstream)]
    gradients: Gradients = feed_forward_vjp(*given)
    return gradients


OF: Mapping[str, Callable[..., Gradients]] = {
    "softmax": of_softmax,
    "cross_entropy": of_cross_entropy,
    "embedding": of_embedding,
    "rotary": of_rotary,
    "feed_forward": of_feed_forward,
}
