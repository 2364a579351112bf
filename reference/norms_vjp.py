"""The gradients of the norms by the chain rule. Each takes `upstream`, the gradient of the result: (..., M)."""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.norms import inverse_root, mean_square, moments
from qkverify.reference.sizes import Array

Gradients = dict[str, Array]


def flat(x: Array) -> Array:
    """All tokens one after another, so that a sum over them is one long sum: (B,L,M) -> (N,M)."""
    return np.reshape(x, (-1, x.shape[-1]))


def normalised_vjp(centred: Array, variance: Array, gain: Array, upstream: Array, *, eps: Array) -> Gradients:
    """(d - mean(d) - y mean(d y)) / deviation with d = upstream gain and y the token before its gain."""
    size, factor = centred.shape[-1], inverse_root(variance, eps)           # (..., 1)
    y, d = centred * factor, upstream * gain                                # (..., M)
    along = np.sum(d * y, axis=-1, keepdims=True) / size                    # (..., 1)
    d_x = factor * (d - np.sum(d, axis=-1, keepdims=True) / size - y * along)  # (..., M)
    sums = [stored(np.sum(flat(part), axis=0)) for part in (upstream * y, upstream)]  # (M)
    return {"x": stored(d_x), "gain": sums[0], "shift": sums[1]}


def layer_norm_vjp(x: Array, gain: Array, shift: Array, upstream: Array, *, eps: Array = 1e-5) -> Gradients:
    """Of x, the gain and the shift."""
    return normalised_vjp(*moments(x), gain, upstream, eps=eps)


def rms_norm_vjp(x: Array, gain: Array, upstream: Array, *, eps: Array = 1e-5) -> Gradients:
    """(d - y mean(d y)) / root of the mean square, of x; the sum of upstream y, of the gain."""
    factor = inverse_root(mean_square(x), eps)                              # (..., 1)
    y, d = x * factor, upstream * gain                                      # (..., M)
    along = np.sum(d * y, axis=-1, keepdims=True) / x.shape[-1]             # (..., 1)
    return {"x": stored(factor * (d - y * along)), "gain": stored(np.sum(flat(upstream * y), axis=0))}
