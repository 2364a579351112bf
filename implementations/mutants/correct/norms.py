"""Layer norm and RMS norm in steps, right; the keywords after eps are the steps that a mutant may replace."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def centred(x: Array) -> Array:
    """x less the mean of its features: (..., M)."""
    return x - x.mean(-1, keepdims=True)


def mean_square(x: Array) -> Array:
    """(..., M) -> (..., 1)."""
    return (x * x).mean(-1, keepdims=True)


def root(square: Array, eps: float) -> Array:
    """What a token is divided by: (..., 1)."""
    return np.sqrt(square + square.dtype.type(eps))


def layer_norm(
    x: Array, weight: Array, bias: Array, *, eps: float = 1e-5, centred: Callable[[Array], Array] = centred,
    mean_square: Callable[[Array], Array] = mean_square, root: Callable[[Array, float], Array] = root,
) -> Array:  # fmt: skip
    """x (..., M), weight (M), bias (M) -> (..., M)."""
    row = centred(x)
    return row / root(mean_square(row), eps) * weight + bias


def rms_norm(
    x: Array, weight: Array, *, eps: float = 1e-5, mean_square: Callable[[Array], Array] = mean_square,
    root: Callable[[Array, float], Array] = root,
) -> Array:  # fmt: skip
    """x (..., M), weight (M) -> (..., M)."""
    return x / root(mean_square(x), eps) * weight
