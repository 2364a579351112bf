"""Softmax, its Jacobian, its gradient, and the log-sum-exp, over the last axis unless `axis` says otherwise.

A slice that is -inf throughout (nothing visible) has weights 0 and log-sum-exp -inf.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.sizes import Array


def softmax(scores: Array, *, axis: int = -1) -> Array:
    """exp(s_i) / sum_k exp(s_k), shifted by the largest score so that nothing overflows. Shape kept."""
    exponentials = np.exp(scores - largest(scores, axis))                   # (..., n)
    total = np.sum(exponentials, axis=axis, keepdims=True)                  # (..., 1)
    return exponentials / np.where(total > 0, total, 1.0)                   # (..., n)


def log_sum_exp(scores: Array) -> Array:
    """log(sum_k exp(s_k)), the natural logarithm: shape (..., n) -> (...)."""
    shift = largest(scores, -1)                                             # (..., 1)
    total = np.sum(np.exp(scores - shift), axis=-1, keepdims=True)          # (..., 1)
    logarithm = np.log(np.where(total > 0, total, 1.0)) + shift             # (..., 1)
    return np.where(total > 0, logarithm, -np.inf)[..., 0]                  # (...)


def largest(scores: Array, axis: int) -> Array:
    """The shift: the largest score of a slice, 0 where the slice has no finite score."""
    peak = np.max(scores, axis=axis, keepdims=True, initial=-np.inf)        # (..., 1)
    return np.where(np.isfinite(peak), peak, 0.0)                           # (..., 1)


def softmax_jacobian(probabilities: Array) -> Array:
    """d y_i / d s_k = y_i (delta_ik - y_k): shape (..., n) -> (..., n, n)."""
    identity = np.eye(probabilities.shape[-1])                              # (n, n)
    return probabilities[..., :, None] * (identity - probabilities[..., None, :])


def softmax_vjp(probabilities: Array, upstream: Array) -> Array:
    """The gradient of sum(g * softmax(s)) in s: y_i (g_i - sum_k y_k g_k). Both (..., n) -> (..., n)."""
    delta = np.sum(probabilities * upstream, axis=-1, keepdims=True)        # (..., 1)
    return probabilities * (upstream - delta)                               # (..., n)


def softmax_vjp_in_steps(scores: Array, upstream: Array) -> Array:
    """The same by the chain rule through exp, sum and division, one by one, and the maximum: (..., n), (..., n) -> (..., n)."""
    exponentials = np.exp(scores - largest(scores, -1))                     # (..., n)
    total = np.sum(exponentials, axis=-1, keepdims=True)                    # (..., 1)
    total = np.where(total > 0, total, 1.0)                                 # (..., 1)
    d_total = np.sum(upstream * (exponentials / total / total), axis=-1, keepdims=True)  # (..., 1)
    return through_maximum(scores, exponentials * (upstream / total - d_total))


def through_maximum(scores: Array, shifted: Array) -> Array:
    """What the largest score gets besides from a gradient by the shifted ones: their sum, which is zero but for rounding."""
    at_largest = np.heaviside(scores - largest(scores, -1), 1.0)            # (..., n)
    return shifted - at_largest * np.sum(shifted, axis=-1, keepdims=True)   # (..., n)
