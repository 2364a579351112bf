"""Attention that is merged from two sets of keys: shifts, shares, sides that have seen nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkverify.implementations.mutants.correct.planting import mutant

MERGED = "merged_attention"
Array = np.ndarray
WIDE: dict[str, Any] = {"arrays": "torch", "dtypes": ("float32", "float64"), "evidence": "inferred"}


def by(shift: Array, lse_a: Array, lse_b: Array) -> tuple[Array, Array, Array, Array]:
    """The weights of both sides, their sum, and that or 1."""
    w_a, w_b = np.exp(lse_a - shift), np.exp(lse_b - shift)
    return w_a, w_b, w_a + w_b, np.where(w_a + w_b > 0, w_a + w_b, 1)


def larger(lse_a: Array, lse_b: Array) -> Array:
    """0 where both are -inf."""
    shift = np.maximum(lse_a, lse_b)
    return np.where(np.isfinite(shift), shift, shift.dtype.type(0))


@mutant("D060", operation=MERGED, evidence="inferred")
def weights_are_not_shifted(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """exp(lse) overflows for large log-sum-exps."""
    shift = np.zeros_like(lse_a)  # right: larger(lse_a, lse_b)
    w_a, w_b, total, some = by(shift, lse_a, lse_b)
    return (w_a[..., None] * o_a + w_b[..., None] * o_b) / some[..., None], np.log(total) + shift


@mutant("D061", operation=MERGED, evidence="inferred")
def two_empty_sides_are_nan(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """-inf is subtracted from -inf."""
    shift = np.maximum(lse_a, lse_b)  # right: larger(lse_a, lse_b)
    w_a, w_b, total, some = by(shift, lse_a, lse_b)
    return (w_a[..., None] * o_a + w_b[..., None] * o_b) / some[..., None], np.log(total) + shift


@mutant("D062", operation=MERGED, evidence="inferred")
def merged_output_is_not_divided(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """The weights, of which the larger is one, are taken for shares."""
    shift = larger(lse_a, lse_b)
    w_a, w_b, total, _ = by(shift, lse_a, lse_b)
    return w_a[..., None] * o_a + w_b[..., None] * o_b, np.log(total) + shift  # right: by the sum


@mutant("D063", operation=MERGED, evidence="inferred")
def larger_log_sum_exp_is_kept(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """The logarithm of the sum of the weights is forgotten: the next merge gives this one too little."""
    shift = larger(lse_a, lse_b)
    w_a, w_b, total, some = by(shift, lse_a, lse_b)
    lse = np.where(total > 0, shift, -np.inf)  # right: np.log(total) + shift
    return (w_a[..., None] * o_a + w_b[..., None] * o_b) / some[
        ..., None
    ], lse  # right: np.log(total) + shift


@mutant("D064", operation=MERGED, evidence="inferred")
def second_side_is_taken_for_the_larger(
    o_a: Array, lse_a: Array, o_b: Array, lse_b: Array
) -> tuple[Array, Array]:
    """The shift is the log-sum-exp of the side that comes last, and the first one's weight overflows where it is far larger."""
    shift = np.where(np.isfinite(lse_b), lse_b, larger(lse_a, lse_b))  # right: larger(lse_a, lse_b)
    w_a, w_b, total, some = by(shift, lse_a, lse_b)
    return (w_a[..., None] * o_a + w_b[..., None] * o_b) / some[..., None], np.log(total) + shift


@mutant("D065", operation=MERGED, **WIDE)
def merged_shares_have_no_gradient(
    o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The log-sum-exps learn from the merged one alone, and not from the output."""
    both = torch.stack([lse_a, lse_b], -1)
    empty = both.isneginf().all(-1, keepdim=True)
    shares = (
        torch.softmax(both.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0).detach()
    )  # right: without detach()
    return shares[..., :1] * o_a + shares[..., 1:] * o_b, torch.logsumexp(both, -1)
