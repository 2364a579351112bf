"""Which queries meet which keys: blocks of queries, tiles of keys, and what is hidden in each.

Query i stands at key i + K - Q. So causality and windows are one interval of keys for a block: tiles outside of it are never
computed, and only tiles on its edges compute a mask. Query heads that share a key head are an axis of their own, (B,G,h,Q,D)
against (B,G,1,K,D): a product repeats the keys by stride 0, and nothing is copied.

The laws call with many small problems, where the cost is the number of NumPy calls: there one block has all heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

Array = np.ndarray
Window = tuple[int | None, int | None]
Heads = tuple[slice, slice, slice]

ROWS = range(32, 256)  # queries of a block: up to half the length, within these
KEYS = range(16, 512)  # keys of a tile, likewise; 256 x 512 scores of four bytes are half a MiB
TOGETHER = 2**16  # scores of a tile of all heads, up to which they are computed at once


@dataclass(frozen=True)
class Block:
    """Successive queries of some heads. Slices of the axes (B,G,h,Q)."""

    heads: Heads
    queries: slice

    @property
    def rows(self) -> tuple[slice, ...]:
        """Where its queries stand in an array of axes (B,G,h,Q,.)."""
        return (*self.heads, self.queries)

    @property
    def shared(self) -> tuple[slice, slice]:
        """Where its keys and values stand in arrays of axes (B,G,1,K,.)."""
        return self.heads[:2]


class Call:
    """The arguments of a call, with query heads grouped by the key head that they read.

    Raises ValueError for sizes that do not match.
    """

    def __init__(self, query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None, causal: bool,
                 window: Window | None, scale: float | None, softcap: float | None, key_lengths: Array | None,
                 upstream: Array | None = None) -> None:  # fmt: skip
        (B, H, Q, D), (_, G, K, E) = query.shape, value.shape
        group = H // max(G, 1)
        if key.shape != (B, G, K, D) or value.shape[0] != B or G * group != H:
            raise ValueError(f"sizes do not match: query {query.shape}, key {key.shape}, value {value.shape}")
        self.query = query.reshape(B, G, group, Q, D)
        self.key, self.value = key[:, :, None], value[:, :, None]
        self.upstream = None if upstream is None else upstream.reshape(B, G, group, Q, E)
        self.mask, self.bias = (
            None if x is None else np.broadcast_to(x, (B, H, Q, K)).reshape(B, G, group, Q, K)
            for x in (mask, bias)
        )
        self.lengths = None if key_lengths is None else np.asarray(key_lengths).reshape(B, 1, 1, 1, 1)
        self.left, self.right = window or (None, None)
        if causal:
            self.right = 0 if self.right is None else min(self.right, 0)
        self.scale = float(scale) if scale is not None else max(D, 1) ** -0.5
        self.softcap = None if softcap == np.inf else softcap
        self.capped = self.softcap is not None
        self.shift = K - Q  # query i stands at key i + shift
        self.rows, self.tile = extent(Q, ROWS), extent(K, KEYS)
        self.work = query.size * K + B * H * Q * K * E

    def blocks(self) -> list[Block]:
        """All blocks; where causal, those that see most first, so that threads end together."""
        return [block for blocks in self.blocks_by_key_head() for block in blocks]

    def blocks_by_key_head(self) -> list[list[Block]]:
        """The blocks in lists, such that those of two lists read different keys."""
        B, G, group, Q, _ = self.query.shape
        together = B * G * group * self.rows * self.tile <= TOGETHER
        rows = [slice(start, min(start + self.rows, Q)) for start in range(0, Q, self.rows)][::-1]
        if together:
            return [[Block((slice(None), slice(None), slice(None)), queries) for queries in rows]]
        one = [[slice(n, n + 1) for n in range(count)] for count in (B, G, group)]
        return [
            [Block((b, g, h), queries) for h in one[2] for queries in rows] for b in one[0] for g in one[1]
        ]

    def scaled(self, block: Block) -> Array:
        """(b,g,h,R,D): the queries of a block times the scale."""
        return self.query[block.rows] * self.query.dtype.type(self.scale)

    def tiles(self, block: Block) -> Iterator[tuple[slice, Array | None]]:
        """The tiles of keys that some query of the block sees, and what is hidden in them: None, or True for a hidden pair."""
        first, end = 0, self.key.shape[3]
        if self.left is not None:
            first = max(block.queries.start + self.shift - self.left, 0)
        if self.right is not None:
            end = min(block.queries.stop + self.shift + self.right, end)
        for start in range(first - first % self.tile, end, self.tile):
            keys = slice(start, min(start + self.tile, end))
            hidden = self.hidden(block, keys)
            if hidden is None or not hidden.all():
                yield keys, hidden

    def hidden(self, block: Block, keys: slice) -> Array | None:
        """Which pairs of a tile are hidden, True for hidden, to broadcast to (b,g,h,R,T); None where all are seen."""
        conditions = []
        low, high = block.queries.start + self.shift, block.queries.stop - 1 + self.shift
        column, row = np.arange(keys.start, keys.stop), np.arange(low, high + 1)[:, None]
        if self.right is not None and keys.stop - 1 > low + self.right:
            conditions.append(column > row + self.right)
        if self.left is not None and keys.start < high - self.left:
            conditions.append(column < row - self.left)
        if self.lengths is not None and keys.stop > (lengths := self.lengths[block.heads[0]]).min(
            initial=keys.stop
        ):
            conditions.append(column >= lengths)
        if self.mask is not None and not (seen := self.mask[block.rows][..., keys]).all():
            conditions.append(~seen)
        if self.bias is not None and (never := np.isneginf(self.bias[block.rows][..., keys])).any():
            conditions.append(never)
        return reduce(np.logical_or, conditions) if conditions else None

    def logits(
        self,
        block: Block,
        query: Array,
        keys: slice,
        hidden: Array | None,
        room: Array,
        slope: Array | None = None,
    ) -> Array:
        """(b,g,h,R,T), in `room`: what is exponentiated, -inf where hidden. `slope` receives their derivative by the scores."""
        logits = room[..., : keys.stop - keys.start]
        np.matmul(query, self.key[block.shared][..., keys, :].swapaxes(-1, -2), out=logits)
        if self.capped:
            np.tanh(np.divide(logits, self.softcap, out=logits), out=logits)
            if slope is not None:
                np.subtract(1, np.square(logits, out=slope), out=slope)
            logits *= self.softcap
        if self.bias is not None:
            logits += self.bias[block.rows][..., keys]
        if hidden is not None:
            np.copyto(logits, -np.inf, where=hidden)
        return logits


def extent(length: int, limits: range) -> int:
    """The largest power of two in half the length, within the limits."""
    return min(max(1 << max((length // 2).bit_length() - 1, 0), limits.start), limits.stop)


def finite(x: Array) -> Array:
    """0 for -inf, which stands for no keys at all: -inf - -inf would be NaN."""
    return np.where(np.isneginf(x), 0, x)


def by_key(rows: Array, columns: Array, hidden: Array | None) -> Array:
    """rows^T columns, summed over the query heads that share a key: (b,g,h,R,T), (b,g,h,R,.) -> (b,g,1,T,.)."""
    if hidden is not None:
        hidden = np.broadcast_to(hidden, rows.shape).swapaxes(-1, -2)
    result = product(rows.swapaxes(-1, -2), columns, hidden)
    return result if result.shape[2] == 1 else result.sum(axis=2, keepdims=True)


def product(weights: Array, matrix: Array, hidden: Array | None) -> Array:
    """weights @ matrix, where a number that is not finite reaches only the rows that see it: 0 * NaN would be NaN."""
    if hidden is None or np.isfinite(matrix.sum()):  # a finite sum has finite terms only
        return weights @ matrix
    usable, hidden = np.isfinite(matrix), np.broadcast_to(hidden, weights.shape)
    result = weights @ np.where(usable, matrix, 0)
    for n in np.flatnonzero(~usable.all(axis=(0, 1, 2, 4))):
        reached = ~hidden[..., n, None] & ~usable[..., None, n, :]
        result = np.where(reached, result + weights[..., n, None] * matrix[..., None, n, :], result)
    return result
