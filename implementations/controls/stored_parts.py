"""Half precision that is rounded once more than a fused kernel has to, as libraries do: legal, and not to be accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qkverify.implementations.mutants.correct.planting import register

Tensor = torch.Tensor
SPLIT = 16


def scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """(B,H,Q,K), float32."""
    key = per_query_head(key, query.shape[1]).float()
    return query.float() @ key.mT * (max(query.shape[-1], 1) ** -0.5 if scale is None else scale)


def per_query_head(shared: Tensor, heads: int) -> Tensor:
    return shared.repeat_interleave(heads // max(shared.shape[1], 1), 1)


def checked(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raises ValueError for sizes that do not fit one another."""
    fit = (
        query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3] and key.shape[:3] == value.shape[:3]
    )
    if not fit or (key.shape[1] and query.shape[1] % key.shape[1]):
        raise ValueError(f"sizes: {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}")


def exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score of each row, or 0, and exp(score - largest)."""
    top = logits.amax(-1, keepdim=True) if logits.shape[-1] else logits.new_zeros((*logits.shape[:3], 1))
    return top, torch.exp(logits - top)


def divided(sums: Tensor, total: Tensor) -> Tensor:
    return sums / torch.where(total == 0, 1, total)


class PerHeadGradients(torch.autograd.Function):
    """FlashAttention-2: for grouped heads dK and dV of each query head are stored, and added afterwards (flash_api.cpp)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:  # type: ignore[override]
        top, weights = exponentials(scores(query, key, scale))
        total = weights.sum(-1, keepdim=True)
        values = per_query_head(value, query.shape[1]).float()
        output = divided(weights.to(query.dtype).float() @ values, total).to(query.dtype)
        ctx.save_for_backward(query, key, value, output, top + torch.log(total))
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        query, key, value, output, lse = ctx.saved_tensors
        (batch, heads, _, size), dtype, above = query.shape, query.dtype, upstream.float()
        values = per_query_head(value, heads).float()
        weights = torch.exp(scores(query, key, ctx.scale) - lse)
        delta = (above * output.float()).sum(-1, keepdim=True)
        d_scores = (weights * (above @ values.mT - delta)).to(dtype).float()
        factor = max(size, 1) ** -0.5 if ctx.scale is None else ctx.scale
        d_query = (d_scores @ per_query_head(key, heads).float() * factor).to(dtype)
        d_key = (d_scores.mT @ query.float() * factor).to(dtype)
        d_value = (weights.to(dtype).float().mT @ above).to(dtype)
        groups = key.shape[1]
        added = (
            x.reshape(batch, groups, heads // max(groups, 1), *x.shape[2:]).sum(2) for x in (d_key, d_value)
        )
        return d_query, *added, None


def per_head_gradients(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Gradients of query heads that share a key are stored before they are added, and delta is made of the stored output."""
    checked(query, key, value)
    result: Tensor = PerHeadGradients.apply(query, key, value, scale)
    return result


def rounded_row_sum(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """The sum of a row is made of its rounded weights: FlashInfer's `m16k16_rowsum_f16f16f32` (attention/prefill.cuh)."""
    checked(query, key, value)
    _, weights = exponentials(scores(query, key, scale))
    stored = weights.to(query.dtype).float()
    values = per_query_head(value, query.shape[1]).float()
    return divided(stored @ values, stored.sum(-1, keepdim=True)).to(query.dtype)


def stored_splits(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """The results of splits of the keys are stored, and merged by their log-sum-exps: FlashInfer's cascade, ring attention."""
    checked(query, key, value)
    logits, values = scores(query, key, scale), per_query_head(value, query.shape[1]).float()
    results, sums = [], []
    for start in range(0, max(key.shape[2], 1), SPLIT):
        top, weights = exponentials(logits[..., start : start + SPLIT])
        total, here = weights.sum(-1, keepdim=True), values[..., start : start + SPLIT, :]
        results.append(divided(weights.to(query.dtype).float() @ here, total).to(query.dtype).float())
        sums.append(top + torch.log(total))
    shares = torch.softmax(torch.stack(sums), 0) if key.shape[2] else torch.stack(sums) * 0
    return (shares * torch.stack(results)).sum(0).to(query.dtype)


CONTROLS: dict[str, Callable[..., Tensor]] = {
    "per-head-gradients": per_head_gradients,
    "rounded-row-sum": rounded_row_sum,
    "stored-splits": stored_splits,
}
for name, function in CONTROLS.items():
    register(function, f"control-{name}", arrays="torch", dtypes=("bfloat16", "float16"), masked_values="read",
             differentiable=function is per_head_gradients)  # fmt: skip
