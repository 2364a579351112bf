"""Attention in plain PyTorch operations, one after another, differentiated by autograd.

Every option of the contract, on every device. Each operation rounds its result to the dtype of the inputs,
so in half precision it is less accurate than a fused kernel. The weights of unseen keys are exact zeros, but
zero times NaN is NaN: what stands in an unseen key or value is read. A query that sees no key gets zeros,
and so do its gradients: its scores are taken as zeros *before* the softmax, because the derivative of a
softmax of nothing but -inf is NaN.

Dimension letters: B batch, H query heads, G key/value heads, Q queries, K keys, D key size, E value size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qkverify import implementation

Window = tuple[int | None, int | None]


@implementation(
    name="torch_eager",
    summary="torch operations one after the other, gradients by autograd",
    arrays="torch",
    dtypes=("float64", "float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
    precision={"float16": "eager", "bfloat16": "eager"},
    causal_alignment="bottom-right",
    empty_rows="zero",
    masked_values="read",
    batch_invariant=False,  # a batched matrix product takes another way for a batch of one
    delta="weights",
    lse="natural",
    lse_gradient=True,
)
def attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False,
    window: Window | None = None, scale: float | None = None, softcap: float | None = None,
    alibi_slopes: Tensor | None = None, key_lengths: Tensor | None = None, sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(query key^T) value, (B,H,Q,E), and the log-sum-exp, (B,H,Q), if it is asked for."""
    check_sizes(query, key, value)
    (batch, heads, queries, size), (_, groups, keys, _) = query.shape, key.shape
    group = heads // max(groups, 1)  # query head h reads key/value head h // group
    scale = max(size, 1) ** -0.5 if scale is None else scale
    # The queries of a group make one product, here and in the gradients of key and value: summing the
    # gradients of copies, one for each query head, would round more often.
    products = query.reshape(batch, groups, group * queries, size) @ key.transpose(-1, -2)
    scores = products.reshape(batch, heads, queries, keys) * scale
    if softcap is not None and softcap < torch.inf:
        scores = softcap * torch.tanh(scores / softcap)
    distance = distances(scores)  # (Q,K)
    if bias is not None:
        scores = scores + bias.expand(scores.shape)
    if alibi_slopes is not None:
        scores = scores - (alibi_slopes[:, None, None] * distance.abs()).to(scores.dtype)
    allowed = visible(scores, distance, mask, bias, causal, window, key_lengths)  # (B,H,Q,K)
    weights, lse = softmax(scores, allowed, sinks)
    output = weights.to(value.dtype).reshape(batch, groups, group * queries, keys) @ value
    output = output.reshape(batch, heads, queries, value.shape[3])
    return (output, lse) if return_lse else output


def check_sizes(query: Tensor, key: Tensor, value: Tensor) -> None:
    q, k, v = (tuple(x.shape) for x in (query, key, value))
    if (q[0], q[3]) != (k[0], k[3]) or k[:3] != v[:3] or q[1] != k[1] * (q[1] // max(k[1], 1)):
        raise ValueError(f"sizes do not match: query {q}, key {k}, value {v}")


def distances(scores: Tensor) -> Tensor:
    """(Q,K): key position less query position. The last query stands at the last key."""
    queries, keys = scores.shape[-2:]
    columns = torch.arange(keys, device=scores.device)
    return columns - torch.arange(keys - queries, keys, device=scores.device)[:, None]


def visible(scores: Tensor, distance: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool,
            window: Window | None, key_lengths: Tensor | None) -> Tensor:  # fmt: skip
    """(B,H,Q,K): which keys each query sees."""
    left, right = window or (None, None)
    allowed = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if causal:
        allowed &= distance <= 0
    if left is not None:
        allowed &= distance >= -left
    if right is not None:
        allowed &= distance <= right
    if mask is not None:
        allowed &= mask
    if bias is not None:
        allowed &= ~torch.isneginf(bias)
    if key_lengths is not None:
        allowed &= torch.arange(scores.shape[-1], device=scores.device) < key_lengths[:, None, None, None]
    return allowed


def softmax(scores: Tensor, allowed: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (B,H,Q,K) and log-sum-exp (B,H,Q). A sink is one more logit, whose weight goes nowhere."""
    keys = scores.shape[-1]
    empty = ~allowed.any(dim=-1, keepdim=True) & (sinks is None)
    logits = scores.masked_fill(~allowed, -torch.inf).masked_fill(empty, 0.0)
    if sinks is not None:
        column = sinks[:, None, None].expand(*scores.shape[:-1], 1)
        logits = torch.cat([logits, column], dim=-1)  # in the wider of both dtypes
    weights = torch.softmax(logits, dim=-1)[..., :keys].masked_fill(~allowed, 0.0)
    return weights, torch.logsumexp(logits, dim=-1).masked_fill(empty[..., 0], -torch.inf)
