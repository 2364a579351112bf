"""Dropout of the weights: what is kept, how it is scaled, and which generator decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qkverify.implementations.mutants.correct.planting import mutant

TORCH = {"arrays": "torch", "dtypes": ("float32", "float64"), "masked_values": "read", "deterministic": True,
         "differentiable": True, "causal_alignment": "bottom-right", "delta": "weights"}  # fmt: skip


def weights(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """(B,H,Q,K); one key head for each query head."""
    key = key.repeat_interleave(query.shape[1] // max(key.shape[1], 1), dim=1)
    return torch.softmax(
        query @ key.transpose(-1, -2) * (max(query.shape[-1], 1) ** -0.5 if scale is None else scale), dim=-1
    )


def product(dropped: Tensor, value: Tensor) -> Tensor:
    return dropped @ value.repeat_interleave(dropped.shape[1] // max(value.shape[1], 1), dim=1)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, probabilities: Tensor, share: float) -> Tensor:
        context.mask, context.share = torch.rand_like(probabilities) >= share, share
        return probabilities * context.mask / (1 - share)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.mask * context.share, None  # right: / (1 - share)


@mutant("B135", evidence="stated", threads="NVIDIA/apex#816", **TORCH)
def gradient_is_scaled_by_the_share(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """The backward pass multiplies by p what the forward pass divides by 1 - p."""
    probabilities = weights(query, key, scale)
    return product(_Dropped.apply(probabilities, dropout) if dropout else probabilities, value)  # type: ignore[no-untyped-call]


@mutant("B135", evidence="stated", threads="rasbt/LLMs-from-scratch#431", **TORCH)
def kept_weights_are_divided_by_the_share(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """What is kept is scaled by 1 / p: right at one half, and nowhere else."""
    probabilities = weights(query, key, scale)
    if dropout:
        probabilities = (
            probabilities * (torch.rand_like(probabilities) >= dropout) / dropout
        )  # right: / (1 - dropout)
    return product(probabilities, value)


@mutant("B136", evidence="stated", threads="Dao-AILab/flash-attention#2088", **TORCH)
def every_call_drops_the_same(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """The generator starts from one seed in every call: all steps and layers drop the same weights."""
    probabilities = weights(query, key, scale)
    generator = torch.Generator().manual_seed(0)  # right: the global generator, which goes on
    drawn = torch.rand(probabilities.shape, generator=generator, dtype=probabilities.dtype)
    return product(probabilities * (drawn >= dropout) / (1 - dropout), value)


@mutant("B136", evidence="partly", threads="Dao-AILab/flash-attention#2088", **TORCH)
def heads_drop_the_same(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """The offset of the generator leaves the head out: all heads drop the same weights."""
    probabilities = weights(query, key, scale)
    drawn = torch.rand_like(probabilities[:, :1])  # right: probabilities
    return product(probabilities * (drawn >= dropout) / (1 - dropout), value)


@mutant(
    "B137",
    evidence="stated",
    threads="pytorch/pytorch#124464 facebookresearch/vjepa2#160 NVIDIA/torch-harmonics#221",
    **TORCH,
)
def dropout_stays_on(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.1
) -> Tensor:
    """Dropout has a default that is not zero: whoever evaluates a model without asking for any gets it all the same."""
    return product(
        torch.dropout(weights(query, key, scale), dropout, True), value
    )  # right: dropout: float = 0.0


@mutant("B137", evidence="inferred", threads="NVIDIA/torch-harmonics#221", **TORCH)
def dropped_weights_are_not_made_up_for(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """The weights that are kept are not scaled: the output shrinks by 1 - p."""
    probabilities = weights(query, key, scale)
    return product(
        probabilities * (torch.rand_like(probabilities) >= dropout), value
    )  # right: / (1 - dropout)


@mutant("A013", evidence="inferred", **TORCH)
def nothing_to_drop_drops_the_default(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float | None = None
) -> Tensor:
    """A share of zero is taken for none given, and the default is dropped."""
    share = 0.0 if dropout is None else dropout or 0.1  # right: dropout
    probabilities = weights(query, key, scale)
    return product(probabilities * (torch.rand_like(probabilities) >= share) / (1 - share), value)


@mutant("A014", evidence="inferred", **TORCH)
def as_many_are_kept_as_should_be_dropped(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Weights are kept where the random number lies below the share."""
    probabilities = weights(query, key, scale)
    drawn = torch.rand_like(probabilities) if dropout else torch.full_like(probabilities, -1.0)
    return product(probabilities * (drawn < dropout) / (1 - dropout), value)  # right: drawn >= dropout


def thinned(probabilities: Tensor, drawn: Tensor, share: float) -> Tensor:
    """Those whose random number reaches the share, scaled; none for a share of one."""
    return probabilities * (drawn >= share) / (1 - share or 1)


@mutant("P050", evidence="inferred", **TORCH)
def tiles_of_columns_drop_the_same(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Random numbers are drawn for a tile of 32 keys and used for every tile: weights 32 columns apart go together."""
    probabilities = weights(query, key, scale)
    if dropout:
        drawn = torch.rand_like(probabilities[..., :32])  # right: probabilities
        probabilities = thinned(
            probabilities,
            drawn.repeat(1, 1, 1, -(-probabilities.shape[3] // 32))[..., : probabilities.shape[3]],
            dropout,
        )
    return product(probabilities, value)


@mutant("P051", evidence="inferred", **TORCH)
def seed_is_the_sum_of_entry_and_head(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """The offset of entry b and head h is b + h: head 1 of entry 0 drops what head 0 of entry 1 drops."""
    probabilities = weights(query, key, scale)
    if dropout:
        entries, heads, *rows = probabilities.shape
        drawn = torch.rand(entries * heads, *rows, dtype=probabilities.dtype)
        place = torch.arange(entries)[:, None] + torch.arange(heads)  # right: [:, None] * heads
        probabilities = thinned(probabilities, drawn[place], dropout)
    return product(probabilities, value)


@mutant("P052", evidence="inferred", **TORCH)
def all_dropped_is_zero_by_zero(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """With a share of one nothing is kept, and nothing is divided by 1 - 1."""
    probabilities = weights(query, key, scale)
    if dropout:
        probabilities = (
            probabilities * (torch.rand_like(probabilities) >= dropout) / (1 - dropout)
        )  # right: thinned
    return product(probabilities, value)


class _LastDropped(torch.autograd.Function):
    mask: Tensor

    @staticmethod
    def forward(context: Any, probabilities: Tensor, share: float) -> Tensor:
        _LastDropped.mask, context.share = torch.rand_like(probabilities) >= share, share
        return torch.where(_LastDropped.mask, probabilities / (1 - share), 0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.where(_LastDropped.mask, gradient / (1 - context.share), 0), None  # right: context.mask


@mutant("P053", evidence="inferred", **TORCH)
def backward_takes_the_mask_of_the_last_call(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """The mask is kept in one place for all layers: the backward pass of the first finds that of the last."""
    probabilities = weights(query, key, scale)
    return product(_LastDropped.apply(probabilities, dropout) if dropout else probabilities, value)  # type: ignore[no-untyped-call]
