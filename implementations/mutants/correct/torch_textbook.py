"""Textbook attention in torch, in steps: for bugs of narrow dtypes and of automatic differentiation.

float16 and bfloat16 are computed in float32 and rounded when they are stored, as fused kernels do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.textbook import Step


def wide(array: torch.Tensor) -> torch.Tensor:
    """`array` in the dtype that is computed in."""
    return array.double() if array.dtype == torch.float64 else array.float()


def scores(call: Call, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    return wide(query) @ wide(key).mT * scale  # (B, H, Q, K)


def add_bias(call: Call, scores: torch.Tensor) -> torch.Tensor:
    return scores + wide(call.bias)


def exponentials(call: Call, scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """exp(scores - maximum), 0 where a key is not seen; so is the exponent: gradients stay finite."""
    low = torch.finfo(scores.dtype).min
    top = torch.where(seen, scores, low).amax(dim=-1, keepdim=True) if scores.shape[-1] else 0.0
    shifted = torch.where(seen, scores - top, 0.0)
    return torch.where(seen, torch.exp(shifted), 0.0)


def sums(call: Call, exponentials: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row sums (B, H, Q, 1) and weighted values (B, H, Q, E)."""
    return exponentials.sum(dim=-1, keepdim=True), exponentials @ wide(value)


@dataclass(frozen=True)
class TorchTextbook:
    """Offers mask, bias, causal (bottom-right) and scale. Rows that see no key are zero."""

    scores: Step = scores
    add_bias: Step = add_bias
    exponentials: Step = exponentials
    sums: Step = sums

    def but(self, **steps: Step) -> TorchTextbook:
        """The same attention with some steps exchanged."""
        return dataclasses.replace(self, **steps)

    def __call__(self, call: Call) -> Any:
        key, value = (array.repeat_interleave(call.group, dim=1) for array in (call.key, call.value))
        scale = call.scale if call.scale is not None else max(call.D, 1) ** -0.5
        scores = self.scores(call, call.query, key, scale)
        seen = torch.ones((call.B, call.H, call.Q, call.K), dtype=torch.bool, device=scores.device)
        if call.bias is not None:
            scores, seen = self.add_bias(call, scores), seen & ~torch.isneginf(call.bias)
        if call.causal:
            seen = seen.tril(call.K - call.Q)
        if call.mask is not None:
            seen = seen & call.mask
        exponentials = self.exponentials(call, scores, seen)
        total, output = self.sums(call, exponentials, value)
        return (output / torch.where(total == 0, 1, total)).to(call.dtype)


TORCH_TEXTBOOK = TorchTextbook()
