"""Attention over tiles of keys with a running softmax: the whole score matrix never exists.

After each tile the output so far is rescaled to the new maximum (Milakov and Gimelshein,
https://arxiv.org/abs/1805.02867; FlashAttention, https://arxiv.org/abs/2205.14135). The backward computes
the weights of a tile again, from the stored log-sum-exp, and takes delta = rowsum(dO * O) from the stored
output. Memory grows with Q * TILE, not with Q * K.

A query that sees no key gets zeros, and a key that a query does not see has no influence on it, not even by
NaN. TILE is small, so that short sequences have several tiles.

Dimension letters: B batch, H query heads, G key/value heads, Q queries, K keys, D key size, E value size, T
keys of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qkverify import implementation

TILE = 16
Array = np.ndarray
Window = tuple[int | None, int | None]


@implementation(
    name="numpy_tiled",
    summary="online softmax over tiles of 16 keys, with tiled gradients",
    arrays="numpy",
    dtypes=("float64", "float32"),
    tile=TILE,
    causal_alignment="bottom-right",
    empty_rows="zero",
    masked_values="ignored",
    deterministic=True,
    batch_invariant=True,
    delta="output",
    lse="natural",
)
@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def attention(
    query: Array, key: Array, value: Array, *,
    mask: Array | None = None, bias: Array | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None,
    key_lengths: Array | None = None, return_lse: bool = False,
) -> Array | tuple[Array, Array]:  # fmt: skip
    """softmax(query key^T) value, (B,H,Q,E), and the log-sum-exp, (B,H,Q), if it is asked for."""
    top = np.full((*query.shape[:3], 1), -np.inf, query.dtype)  # running maximum of the scores
    total = np.zeros_like(top)  # running sum of exp(score - top)
    output = np.zeros((*query.shape[:3], value.shape[3]), query.dtype)  # likewise, times the values
    for tile in Tiles(query, key, value, mask, bias, causal, window, scale, softcap, key_lengths):
        old, top = top, np.maximum(top, tile.logits.max(axis=-1, keepdims=True))
        weights = np.where(tile.seen, np.exp(tile.logits - finite(top)), 0)  # (B,H,Q,T)
        decay = np.where(old == top, 1, np.exp(old - top))  # also where both are -inf: nothing seen so far
        total = total * decay + weights.sum(axis=-1, keepdims=True)
        output = output * decay + product_of_seen(weights, tile.value, tile.seen)
    output /= np.where(total == 0, 1, total)
    return (output, (finite(top) + np.log(total))[..., 0]) if return_lse else output


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def attention_vjp(
    query: Array, key: Array, value: Array, upstream: Array, *,
    mask: Array | None = None, bias: Array | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None,
    key_lengths: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients of sum(upstream * attention(...)) by query, key and value."""
    options = {"mask": mask, "bias": bias, "causal": causal, "window": window, "scale": scale,
               "softcap": softcap, "key_lengths": key_lengths}  # fmt: skip
    output, lse = attention(query, key, value, **options, return_lse=True)
    delta = (upstream * output).sum(axis=-1, keepdims=True)  # (B,H,Q,1)
    d_query, d_key, d_value = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    for tile in Tiles(query, key, value, **options):
        weights = np.where(tile.seen, np.exp(tile.logits - finite(lse[..., None])), 0)  # (B,H,Q,T)
        d_weights = upstream @ tile.value.swapaxes(-1, -2)
        d_scores = np.where(tile.seen, weights * (d_weights - delta) * tile.slope, 0)
        d_query += product_of_seen(d_scores, tile.key, tile.seen)
        d_key[:, :, tile.keys] = by_key(d_scores, query, tile.seen, key.shape[1])
        d_value[:, :, tile.keys] = by_key(weights, upstream, tile.seen, key.shape[1])
    return d_query, d_key, d_value


@dataclass(frozen=True)
class Tile:
    """Some successive keys, as every query meets them. `slope` is d logits / d (query key^T)."""

    keys: slice
    key: Array  # (B,H,T,D)
    value: Array  # (B,H,T,E)
    logits: Array  # (B,H,Q,T), -inf where unseen
    seen: Array  # (B,H,Q,T)
    slope: Array | float


@dataclass(frozen=True)
class Tiles:
    """The tiles of a call, one at a time. Raises ValueError for sizes that do not match."""

    query: Array
    key: Array
    value: Array
    mask: Array | None
    bias: Array | None
    causal: bool
    window: Window | None
    scale: float | None
    softcap: float | None
    key_lengths: Array | None

    def __post_init__(self) -> None:
        q, k, v = self.query.shape, self.key.shape, self.value.shape
        if (q[0], q[3]) != (k[0], k[3]) or k[:3] != v[:3] or q[1] != k[1] * self.group:
            raise ValueError(f"sizes do not match: query {q}, key {k}, value {v}")

    @property
    def group(self) -> int:
        """How many query heads read one key/value head: head h reads h // group."""
        return self.query.shape[1] // max(self.key.shape[1], 1)

    def __iter__(self) -> Iterator[Tile]:
        keys = self.key.shape[2]
        for start in range(0, keys, TILE):
            tile = slice(start, min(start + TILE, keys))
            seen = self.visible(tile)
            if seen.any():
                key, value = (np.repeat(x[:, :, tile], self.group, axis=1) for x in (self.key, self.value))
                scores, slope = self.scores(key)
                if self.bias is not None:
                    scores = scores + self.part(self.bias, tile)
                yield Tile(tile, key, value, np.where(seen, scores, -np.inf), seen, slope)

    def scores(self, key: Array) -> tuple[Array, Array | float]:
        """(B,H,Q,T) scaled and capped, and their derivative by the products."""
        scale = float(self.scale) if self.scale is not None else max(self.query.shape[3], 1) ** -0.5
        scores = self.query @ key.swapaxes(-1, -2) * scale
        if self.softcap in (None, np.inf):
            return scores, scale
        bent = np.tanh(scores / self.softcap)
        return self.softcap * bent, (1 - bent**2) * scale

    def visible(self, tile: slice) -> Array:
        """(B,H,Q,T): which of these keys each query sees. The last query stands at the last key."""
        (batch, heads, queries, _), keys = self.query.shape, self.key.shape[2]
        columns = np.arange(tile.start, tile.stop)
        distance = columns - np.arange(keys - queries, keys)[:, None]  # (Q,T): key less query position
        left, right = self.window or (None, None)
        seen = np.ones((batch, heads, queries, len(columns)), dtype=bool)
        seen &= distance <= 0 if self.causal else True
        seen &= True if left is None else distance >= -left
        seen &= True if right is None else distance <= right
        seen &= True if self.mask is None else self.part(self.mask, tile)
        seen &= True if self.bias is None else ~np.isneginf(self.part(self.bias, tile))
        seen &= True if self.key_lengths is None else columns < self.key_lengths[:, None, None, None]
        return seen

    def part(self, array: Array, tile: slice) -> Array:
        """The part of a mask or bias that is about these keys."""
        return np.broadcast_to(array, (*self.query.shape[:3], self.key.shape[2]))[..., tile]


def finite(x: Array) -> Array:
    """0 for -inf, which stands for no keys at all: -inf - -inf would be NaN."""
    return np.where(np.isneginf(x), 0, x)


def by_key(rows: Array, columns: Array, seen: Array, groups: int) -> Array:
    """rows^T columns, summed over the query heads that share a key: (B,H,Q,T), (B,H,Q,.) -> (B,G,T,.)."""
    product = product_of_seen(rows.swapaxes(-1, -2), columns, seen.swapaxes(-1, -2))
    batch, heads, keys, size = product.shape
    return product.reshape(batch, groups, heads // max(groups, 1), keys, size).sum(axis=2)


def product_of_seen(weights: Array, matrix: Array, seen: Array) -> Array:
    """weights @ matrix, where a number that is not finite reaches only the rows that see it."""
    finite = np.isfinite(matrix)
    product = weights @ np.where(finite, matrix, 0)
    for n in np.flatnonzero(~finite.all(axis=(0, 1, 3))):
        reached = seen[..., n, None] & ~finite[:, :, None, n]
        product = np.where(reached, product + weights[..., n, None] * matrix[:, :, None, n], product)
    return product
