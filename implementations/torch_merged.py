"""Attention that is merged from two sets of keys, in torch: by the larger log-sum-exp, by the merged one, by their difference."""

from __future__ import annotations

import torch
from torch import Tensor

from qkverify import implementation

DECLARED = {"dtypes": ("float32", "float64"), "devices": ("cpu", "cuda")}


@implementation(name="torch_merged", **DECLARED)
def merged_attention(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (..., E) and natural log-sum-exps (...) of two sets of keys -> those of all keys."""
    both = torch.stack([lse_a, lse_b], -1)
    empty = both.isneginf().all(-1)
    shares = torch.softmax(both.masked_fill(empty[..., None], 0.0), -1).masked_fill(empty[..., None], 0.0)
    return shares[..., :1] * o_a + shares[..., 1:] * o_b, torch.logsumexp(both, -1)


@implementation(name="torch_merged-by-the-result", differentiable=False, **DECLARED)
def merged_by_the_result(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The same with exp(lse - the merged log-sum-exp) for shares, as kernels that merge splits have it."""
    lse = torch.logaddexp(lse_a, lse_b)
    shift = lse.masked_fill(lse.isneginf(), 0.0)
    return torch.exp(lse_a - shift)[..., None] * o_a + torch.exp(lse_b - shift)[..., None] * o_b, lse
