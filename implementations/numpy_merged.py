"""Attention that is merged from two sets of keys, in NumPy, with its gradients by hand."""

from __future__ import annotations

import numpy as np

from qkverify import implementation

Array = np.ndarray


def shares(lse_a: Array, lse_b: Array) -> tuple[Array, Array, Array]:
    """(both shares (..., 1), the merged log-sum-exp (...)); a side of -inf has no share."""
    largest = np.maximum(lse_a, lse_b)
    shift = np.where(np.isfinite(largest), largest, largest.dtype.type(0))
    w_a, w_b = np.exp(lse_a - shift), np.exp(lse_b - shift)
    total = w_a + w_b
    some = np.where(total > 0, total, total.dtype.type(1))
    lse = np.where(total > 0, np.log(some) + shift, -np.inf).astype(total.dtype)
    return (w_a / some)[..., None], (w_b / some)[..., None], lse


@implementation(name="numpy_merged", dtypes=("float32", "float64"))
def merged_attention(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """Outputs (..., E) and natural log-sum-exps (...) of two sets of keys -> those of all keys."""
    share_a, share_b, lse = shares(lse_a, lse_b)
    return share_a * o_a + share_b * o_b, lse


def merged_attention_vjp(
    o_a: Array, lse_a: Array, o_b: Array, lse_b: Array, upstream: Array, lse_upstream: Array
) -> tuple[Array, Array, Array, Array]:
    """The gradients of the four arguments."""
    share_a, share_b, _ = shares(lse_a, lse_b)
    exchanged = share_a[..., 0] * share_b[..., 0] * (upstream * (o_a - o_b)).sum(-1)
    d_a, d_b = share_a[..., 0] * lse_upstream + exchanged, share_b[..., 0] * lse_upstream - exchanged
    return share_a * upstream, d_a, share_b * upstream, d_b
