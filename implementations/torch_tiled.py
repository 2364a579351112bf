"""Flash-style attention in PyTorch: tiles of keys, a running softmax, and a backward of its own.

A `torch.autograd.Function`: autograd keeps the inputs, the output and the log-sum-exp, and the backward
computes the weights of each tile again (FlashAttention-2, https://arxiv.org/abs/2307.08691). delta is
rowsum(dO * O) of the output as it was stored. Half precision is widened to float32 tile by tile, and only
results are rounded. Queries that can see nothing of a tile take no part in it, so causal attention and
windows cost what they look at.

A query that sees no key gets zeros, and a key that a query does not see has no influence on it, not even by
NaN.

Dimension letters: B batch, H query heads, G key/value heads, Q queries, K keys, D key size, E value size, T
keys of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkverify import implementation

TILE = 64
Window = tuple[int | None, int | None]


@implementation(
    name="torch_tiled",
    summary="flash-style tiles in torch, with a backward pass of its own",
    arrays="torch",
    dtypes=("float64", "float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
    precision={"float16": "fused", "bfloat16": "fused"},
    tile=TILE,
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
    softcap = None if softcap == torch.inf else softcap
    left, right = window or (None, None)
    if causal:
        right = 0 if right is None else min(right, 0)
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2])
    options = Options(mask, left, right, scale, softcap, key_lengths)
    output, lse = TiledAttention.apply(query, key, value, options)
    return (output, lse) if return_lse else output


class Options(NamedTuple):
    """The options of a call; causality is a right side of 0."""

    mask: Tensor | None
    left: int | None
    right: int | None
    scale: float
    softcap: float | None
    key_lengths: Tensor | None


class TiledAttention(torch.autograd.Function):
    """(output, log-sum-exp) of query, key, value; differentiable once, through the output."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, options: Options
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(query.dtype, torch.float32)
        top = query.new_full((*query.shape[:3], 1), -torch.inf, dtype=wide)  # running maximum of the scores
        total = torch.zeros_like(top)  # running sum of exp(score - top)
        output = query.new_zeros((*query.shape[:3], value.shape[3]), dtype=wide)  # likewise, times the values
        for tile in tiles(query, key, value, options):
            rows = tile.rows
            old = top[:, :, rows]
            new = torch.maximum(old, tile.logits.amax(dim=-1, keepdim=True))
            weights = torch.exp(tile.logits - finite(new)).masked_fill(~tile.seen, 0)  # (B,H,rows,T)
            decay = torch.exp(old - finite(new))
            product = product_of_seen(weights, tile.value, tile.seen)
            top[:, :, rows] = new
            total[:, :, rows] = total[:, :, rows] * decay + weights.sum(dim=-1, keepdim=True)
            output[:, :, rows] = output[:, :, rows] * decay + product
        output = (output / total.masked_fill(total == 0, 1)).to(query.dtype)
        lse = finite(top) + torch.log(total)
        # Tensors are saved where torch can tell that somebody has written to one in the meantime.
        ctx.save_for_backward(query, key, value, output, lse, options.mask, options.key_lengths)
        ctx.options = options._replace(mask=None, key_lengths=None)
        lse = lse[..., 0]
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, lse, mask, key_lengths = ctx.saved_tensors
        options = ctx.options._replace(mask=mask, key_lengths=key_lengths)
        wide, groups = lse.dtype, key.shape[1]
        upstream = upstream.to(wide)
        delta = (upstream * output.to(wide)).sum(dim=-1, keepdim=True)  # (B,H,Q,1)
        d_query, d_key, d_value = (torch.zeros_like(x, dtype=wide) for x in (query, key, value))
        for tile in tiles(query, key, value, options):
            rows, keys = tile.rows, tile.keys
            weights = torch.exp(tile.logits - finite(lse[:, :, rows])).masked_fill(
                ~tile.seen, 0
            )  # (B,H,rows,T)
            d_weights = upstream[:, :, rows] @ tile.value.mT
            d_logits = weights * (d_weights - delta[:, :, rows])
            d_scores = (d_logits * tile.slope).masked_fill(~tile.seen, 0)
            d_query[:, :, rows] += product_of_seen(d_scores, tile.key, tile.seen)
            d_key[:, :, keys] = by_key(d_scores, tile.query, tile.seen, groups)
            d_value[:, :, keys] = by_key(weights, upstream[:, :, rows], tile.seen, groups)
        return d_query.to(query.dtype), d_key.to(query.dtype), d_value.to(query.dtype), None


class Tile(NamedTuple):
    """Some successive keys and the queries that may see any. `slope` is d logits / d (query key^T)."""

    rows: slice
    keys: slice
    query: Tensor  # (B,H,rows,D)
    key: Tensor  # (B,H,T,D)
    value: Tensor  # (B,H,T,E)
    logits: Tensor  # (B,H,rows,T), -inf where unseen
    seen: Tensor  # (B,H,rows,T)
    slope: Tensor | float


def tiles(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Iterator[Tile]:
    """The tiles of a call, one at a time, in float32 or wider. The last query stands at the last key."""
    wide = torch.promote_types(query.dtype, torch.float32)
    queries, keys = query.shape[2], key.shape[2]
    group = query.shape[1] // max(key.shape[1], 1)
    for start in range(0, keys, TILE):
        stop = min(start + TILE, keys)
        first = 0 if options.right is None else start - options.right - (keys - queries)
        end = queries if options.left is None else stop + options.left - (keys - queries)
        rows, columns = slice(max(first, 0), min(max(end, 0), queries)), slice(start, stop)
        if rows.start >= rows.stop:
            continue
        query_tile = query[:, :, rows].to(wide)
        key_tile = key[:, :, columns].to(wide).repeat_interleave(group, dim=1)
        value_tile = value[:, :, columns].to(wide).repeat_interleave(group, dim=1)
        seen = visible(query, rows, columns, keys - queries, options)
        scores, slope = query_tile @ key_tile.mT * options.scale, options.scale
        if options.softcap is not None:
            bent = torch.tanh(scores / options.softcap)
            scores, slope = options.softcap * bent, (1 - bent**2) * options.scale
        logits = scores.masked_fill(~seen, -torch.inf)
        yield Tile(rows, columns, query_tile, key_tile, value_tile, logits, seen, slope)


def visible(query: Tensor, rows: slice, columns: slice, shift: int, options: Options) -> Tensor:
    """(B,H,rows,T): which keys each query sees. Query i stands at key i + shift."""
    key_at = torch.arange(columns.start, columns.stop, device=query.device)
    distance = key_at - torch.arange(rows.start + shift, rows.stop + shift, device=query.device)[:, None]
    seen = torch.ones((*query.shape[:2], *distance.shape), dtype=torch.bool, device=query.device)
    if options.left is not None:
        seen &= distance >= -options.left
    if options.right is not None:
        seen &= distance <= options.right
    if options.mask is not None:
        seen &= options.mask[:, :, rows, columns]
    if options.key_lengths is not None:
        seen &= key_at < options.key_lengths[:, None, None, None]
    return seen


def finite(x: Tensor) -> Tensor:
    """0 for -inf, which stands for no keys at all: -inf - -inf would be NaN."""
    return x.masked_fill(torch.isneginf(x), 0)


def by_key(rows: Tensor, columns: Tensor, seen: Tensor, groups: int) -> Tensor:
    """rows^T columns, summed over the heads that share a key: (B,H,rows,T), (B,H,rows,.) -> (B,G,T,.)."""
    product = product_of_seen(rows.mT, columns, seen.mT)
    batch, heads, keys, size = product.shape
    return product.reshape(batch, groups, heads // max(groups, 1), keys, size).sum(dim=2)


def product_of_seen(weights: Tensor, matrix: Tensor, seen: Tensor) -> Tensor:
    """weights @ matrix, where a number that is not finite reaches only the rows that see it."""
    usable = torch.isfinite(matrix)
    product = weights @ matrix.masked_fill(~usable, 0)
    for n in (~usable).any(dim=-1).any(dim=0).any(dim=0).nonzero()[:, 0].tolist():
        reached = seen[..., n, None] & ~usable[:, :, None, n]
        product = torch.where(reached, product + weights[..., n, None] * matrix[:, :, None, n], product)
    return product


def check_sizes(query: Tensor, key: Tensor, value: Tensor) -> None:
    q, k, v = (tuple(x.shape) for x in (query, key, value))
    if (q[0], q[3]) != (k[0], k[3]) or k[:3] != v[:3] or q[1] != k[1] * (q[1] // max(k[1], 1)):
        raise ValueError(f"sizes do not match: query {q}, key {k}, value {v}")
