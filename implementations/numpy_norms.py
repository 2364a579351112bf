"""Layer norm and RMS norm in NumPy, with their gradients by hand."""

from __future__ import annotations

import numpy as np

from qkverify import implementation

Array = np.ndarray
DTYPES = ("float32", "float64")


def centred(x: Array, eps: float) -> tuple[Array, Array]:
    """(x less its mean, by its deviation (..., M); one over the deviation (..., 1))."""
    row = x - x.mean(-1, keepdims=True)
    factor = 1 / np.sqrt((row * row).mean(-1, keepdims=True) + x.dtype.type(eps))
    return row * factor, factor


@implementation(name="numpy_layer_norm", dtypes=DTYPES)
def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """Mean zero and variance one for each token, then its weight and bias: x (..., M), weight and bias (M) -> (..., M)."""
    return centred(x, eps)[0] * weight + bias


def layer_norm_vjp(
    x: Array, weight: Array, bias: Array, upstream: Array, *, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """The gradients of x, weight and bias."""
    y, factor = centred(x, eps)
    d, tokens = upstream * weight, tuple(range(x.ndim - 1))
    d_x = factor * (d - d.mean(-1, keepdims=True) - y * (d * y).mean(-1, keepdims=True))
    return d_x, (upstream * y).sum(tokens), upstream.sum(tokens)


@implementation(name="numpy_rms_norm", dtypes=DTYPES)
def rms_norm(x: Array, weight: Array, *, eps: float = 1e-5) -> Array:
    """Each token by its root mean square, then its weight: x (..., M), weight (M) -> (..., M)."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)) * weight


def rms_norm_vjp(x: Array, weight: Array, upstream: Array, *, eps: float = 1e-5) -> tuple[Array, Array]:
    """The gradients of x and weight."""
    factor = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    y, d = x * factor, upstream * weight
    return factor * (d - y * (d * y).mean(-1, keepdims=True)), (upstream * y).sum(tuple(range(x.ndim - 1)))
