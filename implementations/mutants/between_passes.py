"""What an autograd function keeps between its two passes, and what else it takes for granted about its caller.

All are one attention with its gradients written out, query (B,H,Q,D), key (B,G,K,D), value (B,G,K,E); each has one bug.
"""

from __future__ import annotations

from typing import Any

import torch

from qkverify.implementations.mutants.correct.planting import mutant

Tensor = torch.Tensor
DECLARED: dict[str, Any] = {
    "arrays": "torch", "dtypes": ("float32", "float64"), "differentiable": True, "evidence": "inferred",
    "masked_values": "read",
}  # fmt: skip


def weights_of(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """softmax of the scores (B,H,Q,K), zero in rows that see nothing; key (B,H,K,D)."""
    queries, keys = query.shape[2], key.shape[2]
    scores = query @ key.mT * scale_of(query, scale)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries if causal else keys)
    seen = seen if mask is None else seen & mask
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    return weights.masked_fill(~seen.expand(scores.shape).any(-1, keepdim=True), 0)


def scale_of(query: Tensor, scale: float | None) -> float:
    return max(query.shape[3], 1) ** -0.5 if scale is None else scale


def pulled(query: Tensor, key: Tensor, value: Tensor, weights: Tensor, scale: float,
           upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of query, key and value, heads apart."""
    slopes = upstream @ value.mT
    slopes = weights * (slopes - (weights * slopes).sum(-1, keepdim=True)) * scale
    return slopes @ key, slopes.mT @ query, weights.mT @ upstream


class _Attention(torch.autograd.Function):
    """`bug` names the line that is wrong; "" is right."""

    workspaces: dict[tuple[int, ...], Tensor] = {}  # noqa: RUF012

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool,
                scale: float | None, bug: str) -> Tensor:  # fmt: skip
        weights = weights_of(query, key, mask, causal, scale)
        context.save_for_backward(query, key, value)
        context.weights, context.mask, context.rest, context.bug = weights, mask, (causal, scale), bug
        return weights @ value

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = context.saved_tensors
        causal, scale = context.rest
        weights = context.weights
        if context.bug == "read again":
            weights = weights_of(
                query, key, context.mask, causal, scale
            )  # right: the weights of the forward pass
        gradients = pulled(query, key, value, weights, scale_of(query, scale), upstream)
        if context.bug == "changed":
            context.weights.mul_(weights)  # right: nothing; the graph may be asked again
        if context.bug == "workspace":
            gradients = tuple(_Attention.kept(i, x) for i, x in enumerate(gradients))  # type: ignore[assignment]  # right: gradients
        return (*gradients, None, None, None, None)

    @staticmethod
    def kept(place: int, gradient: Tensor) -> Tensor:
        workspace = _Attention.workspaces.setdefault((place, *gradient.shape), torch.empty_like(gradient))
        return workspace.copy_(gradient)


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None,
             bug: str) -> Tensor:  # fmt: skip
    group = query.shape[1] // max(key.shape[1], 1)
    every = (x if group == 1 else x.repeat_interleave(group, dim=1) for x in (key, value))
    output: Tensor = _Attention.apply(query, *every, mask, causal, scale, bug)
    return output


@mutant("A030", **DECLARED)
def backward_changes_what_it_kept(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None,
                                  causal: bool = False, scale: float | None = None) -> Tensor:  # fmt: skip
    """The backward pass works in the weights that were kept for it: asked again, it finds them changed."""
    return attended(query, key, value, mask, causal, scale, "changed")


@mutant("A031", **DECLARED)
def gradients_lie_in_one_workspace(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None,
                                   causal: bool = False, scale: float | None = None) -> Tensor:  # fmt: skip
    """The gradients of every call of a shape lie in the same memory: the next backward pass overwrites them."""
    return attended(query, key, value, mask, causal, scale, "workspace")


@mutant("A032", **DECLARED)
def mask_is_read_again_in_the_backward(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None,
                                       causal: bool = False, scale: float | None = None) -> Tensor:  # fmt: skip
    """The backward pass computes the weights anew from a mask that torch was not told of: its owner may have changed it."""
    return attended(query, key, value, mask, causal, scale, "read again")


@mutant("A033", **DECLARED)
def inference_aligns_top_left(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None,
                              causal: bool = False, scale: float | None = None) -> Tensor:  # fmt: skip
    """Where no gradients are recorded a shorter kernel runs, whose causal mask is aligned top-left."""
    if causal and not torch.is_grad_enabled():
        first = torch.ones(
            query.shape[2], key.shape[2], dtype=torch.bool
        ).tril()  # right: .tril(keys - queries)
        mask, causal = first if mask is None else first & mask, False
    return attended(query, key, value, mask, causal, scale, "")


@mutant("A034", **DECLARED)
def one_storage_is_taken_in_order(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None,
                                  causal: bool = False, scale: float | None = None) -> Tensor:  # fmt: skip
    """Slices of one buffer are taken for query, key and value in this order, as most projections have them."""
    if len({x.untyped_storage().data_ptr() for x in (query, key, value)}) == 1 and query.numel():
        query, key, value = sorted(
            (query, key, value), key=Tensor.data_ptr
        )  # right: the arguments as they came
    return attended(query, key, value, mask, causal, scale, "")


@mutant("A035", **DECLARED)
def hidden_keys_score_minus_hundred_thousand(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None,
                                             causal: bool = False, scale: float | None = None) -> Tensor:  # fmt: skip
    """Hidden keys get a score of -1e5, below everything that was ever seen: until scores are lower."""
    group, (queries, keys) = query.shape[1] // max(key.shape[1], 1), (query.shape[2], key.shape[2])
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries if causal else keys)
    seen = (seen if mask is None else seen & mask).expand(*query.shape[:3], keys)
    scores = (query @ key.mT * scale_of(query, scale)).masked_fill(~seen, -1e5)  # right: -inf
    weights = torch.softmax(scores, dim=-1).masked_fill(~seen.any(-1, keepdim=True), 0)
    return weights @ value
