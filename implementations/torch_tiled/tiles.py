"""Which queries meet which keys: blocks of queries, tiles of keys, and what is hidden in each.

Query i stands at key i + K - Q. So causality and windows are one interval of keys for a block: tiles outside of it are never
computed, and only tiles on its edges have a mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = range(32, 256)  # queries of a block: up to half the length, within these
KEYS = range(16, 256)  # keys of a tile, likewise
SCORES = {"cpu": 2**18, "cuda": 2**26}  # of the heads computed at once: in cache, or enough to be busy
LOG2_E = math.log2(math.e)
Window = tuple[int | None, int | None]


class Options(NamedTuple):
    """The options of a call that are numbers; causality is a right side of 0."""

    left: int | None
    right: int | None
    scale: float
    softcap: float | None


class Block(NamedTuple):
    """Successive queries of the query heads that read some key heads of some batch entries."""

    batch: slice
    heads: slice
    queries: slice

    @property
    def rows(self) -> tuple[slice, ...]:
        """Where its queries stand in a tensor of axes (B,G,H/G,Q,.)."""
        return self.batch, self.heads, slice(None), self.queries

    @property
    def shared(self) -> tuple[slice, slice]:
        return self.batch, self.heads


class Call:
    """The arguments of a call: its blocks of queries, and the tiles of keys that each of them sees."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, key_lengths: Tensor | None,
                 options: Options) -> None:  # fmt: skip
        (B, H, Q, D), (G, K) = query.shape, key.shape[1:3]
        self.query = query.reshape(B, G, H // max(G, 1), Q, D)
        self.key, self.value, self.options = key, value, options
        self.mask = None if mask is None else mask.expand(B, H, Q, K).reshape(*self.query.shape[:4], K)
        self.lengths = None if key_lengths is None else key_lengths.long()
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.capped, self.shift = options.softcap is not None, K - Q
        self.base = 1.0 if self.capped else LOG2_E  # what the scale is multiplied by, too
        self.memory: list[Tensor] = []
        self.block_rows, self.tile_keys = extent(Q, ROWS), extent(K, KEYS)

    def blocks(self) -> Iterator[Block]:
        """All heads at once where that is few scores, else as many of a batch entry as are few."""
        B, G, group, Q, _ = self.query.shape
        heads = SCORES["cpu" if self.query.device.type == "cpu" else "cuda"] // max(
            group * self.block_rows * self.tile_keys, 1
        )
        batch, heads = (max(B, 1), max(G, 1)) if heads >= B * G else (1, min(max(heads, 1), G))
        for b in range(0, B, batch):
            for g in range(0, G, heads):
                for start in range(0, Q, self.block_rows):
                    yield Block(
                        slice(b, b + batch),
                        slice(g, g + heads),
                        slice(start, min(start + self.block_rows, Q)),
                    )

    def of_rows(self, x: Tensor, block: Block) -> Tensor:
        """(B,G,H/G,Q,.) -> (N,M,.), widened."""
        return x[block.rows].to(self.wide).flatten(2, 3).flatten(0, 1)

    def scaled_query(self, block: Block) -> Tensor:
        return self.of_rows(self.query, block) * (self.options.scale * self.base)

    def shared(self, x: Tensor, block: Block) -> Tensor:
        """(B,G,K,.) -> (N,K,.)."""
        return x[block.shared].flatten(0, 1)

    def rooms(self, query: Tensor, count: int) -> list[Tensor]:
        """Memory for tiles of scores. Used again by later blocks: fresh memory costs a fault for each of its pages."""
        size = query.shape[0] * query.shape[1] * self.tile_keys
        while len(self.memory) < count or self.memory[0].numel() < size:
            self.memory = [query.new_empty(size) for _ in range(count)]
        return self.memory[:count]

    def tiles(self, block: Block) -> Iterator[tuple[slice, Tensor | None]]:
        """The tiles that some query of the block sees, and a limit for their scores, (B,G,H/G,R,T).

        The limit is -inf for what is hidden and inf for what is seen; None where all is seen.
        """
        first, end = 0, self.key.shape[2]
        if self.options.left is not None:
            first = max(block.queries.start + self.shift - self.options.left, 0)
        if self.options.right is not None:
            end = min(block.queries.stop + self.shift + self.options.right, end)
        for start in range(first - first % self.tile_keys, end, self.tile_keys):
            keys = slice(start, min(start + self.tile_keys, end))
            conditions = self.conditions(block, keys)
            if not conditions:
                yield keys, None
                continue
            hidden = reduce(torch.logical_or, conditions)
            if not hidden.all():
                limit = torch.where(hidden, -torch.inf, torch.inf).to(self.wide)
                yield keys, limit.expand(*self.query[block.rows].shape[:4], keys.stop - keys.start)

    def conditions(self, block: Block, keys: slice) -> list[Tensor]:
        """What hides pairs of a tile, True for hidden, to broadcast to (B,G,H/G,R,T); nothing where all are seen."""
        left, right, *_ = self.options
        low, high, device = (
            block.queries.start + self.shift,
            block.queries.stop - 1 + self.shift,
            self.query.device,
        )
        ahead = right is not None and keys.stop - 1 > low + right
        behind = left is not None and keys.start < high - left
        if not ahead and not behind and self.lengths is None and self.mask is None:
            return []
        column = torch.arange(keys.start, keys.stop, device=device)
        row = torch.arange(low, high + 1, device=device)[:, None]
        conditions = []
        if ahead:
            conditions.append(column > row + right)
        if behind:
            conditions.append(column < row - left)
        if self.lengths is not None:
            conditions.append(column >= self.lengths[block.batch, None, None, None, None])
        if self.mask is not None:
            conditions.append(~self.mask[block.rows][..., keys])
        return [condition for condition in conditions if condition.any()]

    def logits(self, query: Tensor, key: Tensor, limit: Tensor | None, room: Tensor,
               slope: Tensor | None = None) -> Tensor:  # fmt: skip
        """(N,M,T), in `room`: the exponents of two, -inf where hidden.

        `slope` receives their derivative by the scaled scores, but for the base.
        """
        logits = fitted(room, (*query.shape[:2], key.shape[1]))
        torch.bmm(query, key.mT, out=logits)
        if self.capped:
            logits.div_(self.options.softcap).tanh_()
            if slope is not None:
                torch.square(logits, out=fitted(slope, logits.shape)).neg_().add_(1)
            logits.mul_(self.options.softcap * LOG2_E)
        if limit is not None and logits.sum().isnan():  # the minimum of NaN would be NaN
            logits.view(limit.shape).masked_fill_(limit < 0, -torch.inf)
        elif limit is not None:  # eight times as fast
            torch.minimum(grouped := logits.view(limit.shape), limit, out=grouped)
        return logits


def extent(length: int, limits: range) -> int:
    """The largest power of two in half the length, within the limits."""
    return min(max(1 << max((length // 2).bit_length() - 1, 0), limits.start), limits.stop)


def fitted(room: Tensor, shape: Any) -> Tensor:
    """The start of a flat tensor, in a shape; contiguous, as a fast batched product wants its result."""
    return room[: math.prod(shape)].view(shape)


def add_by_key(
    total: Tensor, rows: Tensor, weights: Tensor, limit: Tensor | None, factor: float = 1.0
) -> None:
    """total += factor rows^T weights, of (B,G,.,T), (N,M,.) and (N,M,T).

    The transpose of weights^T rows, because a product takes a fifth more time where the larger side is to be transposed.
    """
    total = total.flatten(0, 1)
    if limit is None or rows.sum().isfinite():
        total.baddbmm_(rows.mT, weights, alpha=factor)
        return
    by_key = torch.zeros_like(total.mT, memory_format=torch.contiguous_format)
    add_product(by_key, weights.mT, rows, limit, transposed=True)
    total.add_(by_key.mT, alpha=factor)


def add_product(
    total: Tensor, weights: Tensor, matrix: Tensor, limit: Tensor | None, transposed: bool = False
) -> None:
    """total += weights @ matrix, where a number that is not finite reaches only the rows that see it: 0 * NaN would be NaN."""
    if limit is None or matrix.sum().isfinite():  # a finite sum has finite terms only
        total.baddbmm_(weights, matrix)
        return
    hidden = (limit < 0).flatten(2, 3).flatten(0, 1)  # (N,M,T)
    hidden = hidden.mT if transposed else hidden
    usable = torch.isfinite(matrix)
    total.baddbmm_(weights, matrix.masked_fill(~usable, 0))
    for n in (~usable).any(dim=-1).any(dim=0).nonzero()[:, 0].tolist():
        reached = ~hidden[..., n, None] & ~usable[:, None, n]
        total.copy_(torch.where(reached, total + weights[..., n, None] * matrix[:, None, n], total))
