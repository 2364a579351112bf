"""Errors that are small and all of one sign: each hides in the bound of a single element, and shows in the mean of many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qkverify.implementations.mutants.correct import torch_textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.textbook import Step
from qkverify.implementations.mutants.correct.torch_textbook import TORCH_TEXTBOOK, wide

LONG = 512  # keys from which on a kernel takes another path
FUSED = {"arrays": "torch", "dtypes": ("bfloat16",), "precision": "fused", "masked_values": "read"}
LOG2_E = torch.tensor(math.log2(math.e), dtype=torch.bfloat16).item()  # right: a float32 constant


@mutant("A041", step="scores", evidence="inferred", base=TORCH_TEXTBOOK, differentiable=False, **FUSED)
def log2_e_is_kept_in_bfloat16(
    call: Call, query: torch.Tensor, key: torch.Tensor, scale: float
) -> torch.Tensor:
    """The constant log2 e that goes into the scale is stored in bfloat16: the softmax scale is 0.18 % too large."""
    return torch_textbook.scores(call, query, key, scale) * (LOG2_E * math.log(2))


@mutant("A042", step="normalise", evidence="inferred", dtypes=("float32",))
def reciprocal_of_a_long_row_is_an_estimate(
    call: Call, exponentials: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """Rows of more than 512 keys are divided by an estimate of 12 bits, without the Newton step that should follow."""
    inverse = (1 / np.where(total == 0, 1, total)).astype(np.float32)
    if call.K > LONG:
        inverse = (inverse.view(np.int32) & -4096).view(np.float32)  # right: without this
    return exponentials * inverse


@dataclass(frozen=True)
class Backward:
    """The gradients of a kernel that computes its weights anew, in float32; each step is right."""

    weights: Step = lambda scores: torch.softmax(scores, -1)
    delta: Step = lambda output, upstream: (wide(upstream) * output).sum(-1, keepdim=True)
    store: Step = lambda gradient, dtype: gradient.to(dtype)

    def but(self, **steps: Step) -> Backward:
        return dataclasses.replace(self, **steps)

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float,
                 upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:  # fmt: skip
        scores = wide(query) @ wide(key).mT * scale
        output = torch.softmax(scores, -1) @ wide(value)
        weights, above = self.weights(scores), wide(upstream)
        d_scores = weights * (above @ wide(value).mT - self.delta(output, upstream)) * scale
        gradients = (d_scores @ wide(key), d_scores.mT @ wide(query), weights.mT @ above)
        return tuple(self.store(gradient, query.dtype) for gradient in gradients)


class Attention(torch.autograd.Function):
    """A right forward pass, and whatever backward pass is given: (B,H,Q,D), (B,H,K,D), (B,H,K,E) -> (B,H,Q,E)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float,
                backward: Backward) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.pull = scale, backward
        return TORCH_TEXTBOOK(Call(query, key, value, scale=scale))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*ctx.pull(*ctx.saved_tensors, ctx.scale, *upstream), None, None)


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None,
             backward: Backward) -> torch.Tensor:  # fmt: skip
    group = query.shape[1] // max(key.shape[1], 1)
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    return Attention.apply(
        query, key, value, max(query.shape[3], 1) ** -0.5 if scale is None else scale, backward
    )


def cut_off(array: torch.Tensor) -> torch.Tensor:
    """float32 to the 16 leading bits."""
    return (array.contiguous().view(torch.int32) & -65536).view(torch.float32)


def _backward_mutant(bug: str) -> Callable[..., Any]:
    return mutant(bug, evidence="inferred", requires=("G == H", "K >= 1"), differentiable=True, **FUSED)


@_backward_mutant("A043")
def gradients_are_cut_off(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """The output is rounded to nearest; each gradient becomes bfloat16 by dropping its lower 16 bits."""
    broken = Backward().but(
        store=lambda gradient, dtype: cut_off(gradient).to(dtype)
    )  # right: without cut_off
    return attended(query, key, value, scale, broken)


@_backward_mutant("A044")
def log2_e_of_the_backward_pass_is_kept_in_bfloat16(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """The backward pass computes the weights anew, with a constant log2 e that is stored in bfloat16."""
    broken = Backward().but(weights=lambda scores: torch.softmax(scores * (LOG2_E * math.log(2)), -1))
    return attended(query, key, value, scale, broken)


@_backward_mutant("A045")
def delta_is_cut_off_twice(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """delta is the sum of products dO O of which both, O and the products, lost their lower 16 bits: it is 0.6 % too small."""
    broken = Backward().but(
        delta=lambda output, upstream: cut_off(wide(upstream) * cut_off(output)).sum(-1, keepdim=True)
    )  # right: without cut_off
    return attended(query, key, value, scale, broken)
