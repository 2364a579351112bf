"""Narrow dtypes: what may be rounded to bfloat16 and float16 between the steps, and what may not."""

from __future__ import annotations

import torch

from qkverify.implementations.mutants.correct import torch_textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.torch_textbook import TORCH_TEXTBOOK

NARROW = {
    "arrays": "torch",
    "dtypes": ("bfloat16", "float16"),
    "precision": "fused",
    "masked_values": "read",
    "differentiable": False,
    "base": TORCH_TEXTBOOK,
}


@mutant("B006", step="scores", evidence="stated", threads="ml-explore/mlx#3119 antirez/h3.c#3", **NARROW)
def scaled_query_is_rounded(call: Call, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """The query is multiplied by the scale in its own narrow dtype, before the wide product with the keys."""
    scaled = query * scale  # right: wide(query) * scale
    return torch_textbook.scores(call, scaled, key, 1.0)


@mutant(
    "B037",
    step="sums",
    evidence="stated",
    threads="pytorch/pytorch#128922 pytorch/pytorch#135964 huggingface/transformers#17437",
    **NARROW,
)
def sums_are_kept_in_the_storage_dtype(
    call: Call, exponentials: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and their sums are rounded to the storage dtype at every step: 257 ones add up to 256."""
    weights = exponentials.to(call.dtype)  # right: without to(call.dtype)
    total, output = torch.zeros_like(weights[..., :1]), weights.new_zeros((*weights.shape[:3], call.E))
    for j in range(call.K):
        total = total + weights[..., j : j + 1]
        output = output + weights[..., j : j + 1] * value[:, :, j : j + 1].to(weights.dtype)
    return total, output


@mutant(
    "A001",
    evidence="inferred",
    arrays="torch",
    dtypes=("bfloat16",),
    precision="fused",
    masked_values="read",
    differentiable=False,
)
def result_is_cut_off(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """The float32 result becomes bfloat16 by dropping its lower 16 bits: every number leans toward zero by half a unit."""
    output = TORCH_TEXTBOOK(
        Call(*(torch_textbook.wide(x) for x in (query, key, value)), scale=scale)
    ).contiguous()
    return (
        (output.view(torch.int32) & -65536).view(torch.float32).to(query.dtype)
    )  # right: output.to(query.dtype)
