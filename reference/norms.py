"""The norms of a layer: layer norm (arXiv:1607.06450) and RMS norm (arXiv:1910.07467). M features of each token."""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.sizes import Array


def moments(x: Array) -> tuple[Array, Array]:
    """x less its mean (..., M), and its variance (..., 1), of the features of each token."""
    centred = x - np.sum(x, axis=-1, keepdims=True) / x.shape[-1]           # (..., M)
    return centred, np.sum(centred * centred, axis=-1, keepdims=True) / x.shape[-1]


def mean_square(x: Array) -> Array:
    """(..., M) -> (..., 1)."""
    return np.sum(x * x, axis=-1, keepdims=True) / x.shape[-1]


def inverse_root(variance: Array, eps: Array) -> Array:
    """What a token is multiplied with: (..., 1)."""
    return 1.0 / np.sqrt(variance + eps)


def normalised(centred: Array, variance: Array, gain: Array, shift: Array, *, eps: Array) -> Array:
    """Layer norm of its two moments: (..., M)."""
    return stored(centred * inverse_root(variance, eps) * gain + shift)


def layer_norm(x: Array, gain: Array, shift: Array, *, eps: Array = 1e-5) -> Array:
    """(x - mean) / sqrt(variance + eps) * gain + shift, over the features of each token: (..., M)."""
    return normalised(*moments(x), gain, shift, eps=eps)


def rms_norm(x: Array, gain: Array, *, eps: Array = 1e-5) -> Array:
    """x / sqrt(mean of x^2 + eps) * gain, over the features of each token: (..., M)."""
    return stored(x * inverse_root(mean_square(x), eps) * gain)
