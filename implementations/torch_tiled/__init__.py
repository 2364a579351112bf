"""Flash attention in PyTorch: blocks of queries meet tiles of keys, with a running softmax and a backward of its own.

The forward, for a block of queries and one tile of keys after another (FlashAttention, https://arxiv.org/abs/2205.14135):

    scores = (scale log2(e) query) key^T      new = max(top, rowmax(scores))      weights = 2^(scores - new)
    total = total 2^(top - new) + rowsum(weights)      result = result 2^(top - new) + weights value      top = new

and after the last tile output = result / total. Powers of two are cheaper than those of e. `top` starts at the smallest
finite number, so that a row of hidden scores, all -inf, has weights of zero and no NaN.

A `torch.autograd.Function` keeps the inputs, the output and log2(sum 2^scores). Its backward computes the weights of a tile
again and takes delta = rowsum(dO * O) of the output as it was stored, so that five products a tile are enough
(FlashAttention-2, https://arxiv.org/abs/2307.08691):

    dV += P^T dO      dP = dO V^T      dS = P * (dP - delta)      dQ += scale dS K      dK += dS^T (scale Q)

Tiles that no query of a block sees are skipped, and tiles that all see have no mask. Query heads that share a key head are
rows of one product, so that keys are not repeated. Half precision is widened to float32 a tile at a time, and only results
are rounded. Short sequences have short tiles, so that they too meet several.

A query that sees no key gets zeros, and a key that a query does not see has no influence on it, not even by NaN.

Dimension letters: B batch, H query heads, G key/value heads, Q queries, K keys, D key size, E value size; of a block: N key
heads of all its batch entries, R queries, M their rows, R of each query head that shares a key head; T keys of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkverify import implementation
from qkverify.implementations.torch_tiled.tiles import (
    KEYS,
    LOG2_E,
    ROWS,
    Block,
    Call,
    Options,
    Window,
    add_by_key,
    add_product,
    fitted,
)


@implementation(
    name="torch_tiled",
    summary="flash-style tiles in torch, with a backward pass of its own",
    arrays="torch",
    dtypes=("float64", "float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
    precision={"float16": "fused", "bfloat16": "fused"},
    tile=(KEYS.start, ROWS.start),
    causal_alignment="bottom-right",
    empty_rows="zero",
    masked_values="ignored",
    batch_invariant=False,  # a batched matrix product takes another way for a batch of one
    delta="output",
    lse="natural",
    lse_gradient=False,
)
def attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    mask: Tensor | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None, key_lengths: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(query key^T) value, (B,H,Q,E), and the log-sum-exp, (B,H,Q), if it is asked for.

    The log-sum-exp is float32, or float64 for float64 inputs, and has no gradient of its own.
    """
    check_sizes(query, key, value)
    scale = max(query.shape[3], 1) ** -0.5 if scale is None else scale
    left, right = window or (None, None)
    if causal:
        right = 0 if right is None else min(right, 0)
    softcap = None if softcap == torch.inf else softcap
    output, lse = TiledAttention.apply(
        query, key, value, mask, key_lengths, Options(left, right, scale, softcap)
    )
    return (output, lse) if return_lse else output


class TiledAttention(torch.autograd.Function):
    """(output, log-sum-exp) of query, key, value; differentiable once, through the output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
                key_lengths: Tensor | None, options: Options) -> tuple[Tensor, Tensor]:  # fmt: skip
        call = Call(query, key, value, mask, key_lengths, options)
        output = query.new_empty((*call.query.shape[:4], value.shape[3]))
        log2_sum = query.new_empty((*call.query.shape[:4], 1), dtype=call.wide)
        for block in call.blocks():
            for array, rows in zip((output, log2_sum), attend(call, block), strict=True):
                part = array[block.rows]
                part.copy_(rows.view(part.shape))
        output = output.view(*query.shape[:3], value.shape[3])
        # Tensors are saved where torch can tell that somebody has written to one in the meantime.
        ctx.save_for_backward(query, key, value, mask, key_lengths, output, log2_sum)
        ctx.options = options
        lse = log2_sum.view(query.shape[:3]) / LOG2_E
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, output, log2_sum = ctx.saved_tensors
        call = Call(*inputs, ctx.options)
        grouped = call.query.shape[:4]
        upstream, output = (x.reshape(*grouped, x.shape[3]) for x in (upstream, output))
        d_query = torch.empty_like(call.query, dtype=call.wide, memory_format=torch.contiguous_format)
        d_key, d_value = (
            torch.zeros_like(x.mT, dtype=call.wide, memory_format=torch.contiguous_format)
            for x in inputs[1:3]
        )
        for block in call.blocks():
            d_rows = pull(call, block, upstream, output, log2_sum, d_key, d_value)
            part = d_query[block.rows]
            part.copy_(d_rows.view(part.shape))
        gradients = (d_query.view(inputs[0].shape), d_key.mT.contiguous(), d_value.mT.contiguous())
        return *(gradient.to(output.dtype) for gradient in gradients), None, None, None


def attend(call: Call, block: Block) -> tuple[Tensor, Tensor]:
    """Of one block of queries: the outputs (N,M,E) and the logarithms to base two of the sums of 2^scores, (N,M,1)."""
    query, key, value = call.scaled_query(block), call.shared(call.key, block), call.shared(call.value, block)
    top = query.new_full((*query.shape[:2], 1), torch.finfo(call.wide).min)  # running maximum: (N,M,1)
    total = torch.zeros_like(top)  # running sum of 2^(score - top)
    result = query.new_zeros((*query.shape[:2], value.shape[2]))  # likewise, times the values: (N,M,E)
    (room,) = call.rooms(query, 1)
    for keys, limit in call.tiles(block):
        weights = call.logits(query, key[:, keys].to(call.wide), limit, room)
        new = torch.maximum(top, weights.amax(dim=-1, keepdim=True))
        weights.sub_(new).exp2_()
        decay = top.sub_(new).exp2_()
        total.mul_(decay).add_(weights.sum(dim=-1, keepdim=True))
        add_product(result.mul_(decay), weights, value[:, keys].to(call.wide), limit)
        top = new
    return result.div_(total.masked_fill(total == 0, 1)), top + total.log2()


def pull(call: Call, block: Block, upstream: Tensor, output: Tensor, log2_sum: Tensor, d_key: Tensor,
         d_value: Tensor) -> Tensor:  # fmt: skip
    """The gradient of one block of queries, (N,M,D); adds what it gives to keys, (B,G,D,K), and to values, (B,G,E,K)."""
    query, upstream = call.scaled_query(block), call.of_rows(upstream, block)
    key, value = call.shared(call.key, block), call.shared(call.value, block)
    delta = (upstream * call.of_rows(output, block)).sum(dim=-1, keepdim=True)  # (N,M,1)
    top = call.of_rows(log2_sum, block).clamp(min=torch.finfo(call.wide).min)  # -inf: sees no key
    d_query, rooms = torch.zeros_like(query), call.rooms(query, 2 + call.capped)
    for keys, limit in call.tiles(block):
        key_tile, value_tile = (x[:, keys].to(call.wide) for x in (key, value))
        weights = call.logits(query, key_tile, limit, *rooms[::2])
        weights.sub_(top).exp2_()
        d_scores = fitted(rooms[1], weights.shape)
        torch.bmm(upstream, value_tile.mT, out=d_scores)
        d_scores.sub_(delta).mul_(weights)
        if call.capped:
            d_scores.mul_(fitted(rooms[2], weights.shape))
        if limit is not None and not d_scores.sum().isfinite():  # a weight of zero times NaN
            d_scores.view(limit.shape).masked_fill_(limit < 0, 0)
        add_product(d_query, d_scores, key_tile, limit)
        add_by_key(d_key[block.shared][..., keys], query, d_scores, limit, 1 / call.base)
        add_by_key(d_value[block.shared][..., keys], upstream, weights, limit)
    return d_query.mul_(call.options.scale)


def check_sizes(query: Tensor, key: Tensor, value: Tensor) -> None:
    q, k, v = (tuple(x.shape) for x in (query, key, value))
    if (q[0], q[3]) != (k[0], k[3]) or k[:3] != v[:3] or q[1] != k[1] * (q[1] // max(k[1], 1)):
        raise ValueError(f"sizes do not match: query {q}, key {k}, value {v}")
