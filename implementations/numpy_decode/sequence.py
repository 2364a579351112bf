"""Attention over one sequence: a part of the keys after another, with a running softmax.

For each part of the keys (flash decoding, which computes them side by side: https://pytorch.org/blog/flash-decoding/):

    logits = (scale query) key^T      new = max(top, rowmax(logits))      weights = exp(logits - new)
    total = total exp(top - new) + rowsum(weights)      result = result exp(top - new) + weights value      top = new

and after the last part output = result / total. A sink is a logit without a value: top and total begin with it. So memory
holds the scores of one part, the pages of one part are gathered, and parts before a window are not read. Query heads that
share a key head are rows of one product: with one new token reading the keys is most of the time, and none is read twice.

Dimension letters: H query heads, G key heads, each read by h = H / G; Q queries, the last tokens of K; D key size, E value
size; C keys of a part, P rows of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Window = tuple[int | None, int | None]
PART = range(16, 2048)  # keys of a part: the largest power of two in half of them, within these


class Options(NamedTuple):
    """What the functions above take besides arrays."""

    causal: bool = False
    scale: float | None = None
    softcap: float | None = None
    window: Window | None = None
    alibi_slopes: Array | None = None
    sinks: Array | None = None


class Held(NamedTuple):
    """The keys and values of one sequence, wherever they lie: `read` gives those of a part, (G,C,D) and (G,C,E)."""

    keys: int
    read: Callable[[slice], tuple[Array, Array]]

    def parts(self, queries: int, options: Options) -> Iterator[slice]:
        """All parts but those that lie before the window of the first query."""
        left = (options.window or (None, None))[0]
        first = 0 if left is None else max(self.keys - queries - left, 0)
        size = min(max(1 << max((self.keys // 2).bit_length() - 1, 0), PART.start), PART.stop)
        for start in range(first - first % size, self.keys, size):
            yield slice(start, min(start + size, self.keys))


class Pages(NamedTuple):
    """The pages of one sequence, in order, of so many rows each."""

    table: Array
    rows: int

    def place(self, part: slice) -> tuple[Array, Array]:
        """The page and the row in it of each key of a part."""
        at = np.arange(part.start, part.stop)
        return self.table[at // self.rows], at % self.rows

    def held(self, key_pages: Array, value_pages: Array, length: int) -> Held:
        def read(part: slice) -> tuple[Array, Array]:
            place = self.place(part)
            return key_pages[place].swapaxes(0, 1), value_pages[place].swapaxes(0, 1)

        return Held(length, read)


def held(key: Array, value: Array) -> Held:
    """(G,K,D) and (G,K,E) in one piece."""
    return Held(key.shape[1], lambda part: (key[:, part], value[:, part]))


def into(gradients: list[Array]) -> Callable[..., None]:
    """What `pull` gives its gradients to: writes those of a part to where it stands in (G,K,.)."""

    def write(part: slice, *of_part: Array) -> None:
        for gradient, rows in zip(gradients, of_part, strict=True):
            gradient[:, part] = rows

    return write


def attend(query: Array, held: Held, options: Options) -> tuple[Array, Array, Array]:
    """query (H,Q,D): the output (H,Q,E), and of each row the largest logit and the sum of exp(logit - largest), (G,h,Q,1)."""
    rows, size = scaled(query, held, options), held.read(slice(0, 0))[1].shape[2]
    top = np.full((*rows.shape[:3], 1), -np.inf, query.dtype)
    if options.sinks is not None:
        top[...] = options.sinks.astype(query.dtype).reshape(*rows.shape[:2], 1, 1)
    total = np.exp(top - finite(top))  # a sink has no value, but a weight
    result = np.zeros((*rows.shape[:3], size), query.dtype)
    for part in held.parts(query.shape[1], options):
        key, value = held.read(part)
        logits, _ = logits_of(rows, key, part, held.keys, options)
        new = np.maximum(top, logits.max(axis=-1, keepdims=True))
        weights, decay = np.exp(logits - finite(new)), np.exp(top - finite(new))
        total = total * decay + weights.sum(axis=-1, keepdims=True)
        result = result * decay + product(weights, value)
        top = new
    result = result / np.where(total == 0, 1, total)
    return result.reshape(*query.shape[:2], size), finite(top), total


def pull(query: Array, held: Held, upstream: Array, options: Options, add: Callable[..., None]) -> Array:
    """The gradient by the query, (H,Q,D). Those by each part of the keys and values, (G,C,.), are given to `add`."""
    rows, (_, top, total) = scaled(query, held, options), attend(query, held, options)
    above = upstream.reshape(*rows.shape[:3], upstream.shape[2])

    def steps() -> Iterator[tuple[slice, Array, Array, Array, Array | float]]:
        for part in held.parts(query.shape[1], options):
            key, value = held.read(part)
            logits, slope = logits_of(rows, key, part, held.keys, options)
            weights = np.exp(logits - top) / np.where(total == 0, 1, total)
            yield part, key, weights, product(above, value.swapaxes(1, 2)), slope

    delta = sum((w * d_weights).sum(axis=-1, keepdims=True) for _, _, w, d_weights, _ in steps())
    d_rows = np.zeros_like(rows)
    for part, key, weights, d_weights, slope in steps():
        d_scores = weights * (d_weights - delta) * slope
        d_rows += product(d_scores, key)
        add(part, by_key(d_scores, rows), by_key(weights, above))
    return (d_rows * scale_of(query, options.scale)).reshape(query.shape)


def logits_of(
    rows: Array, key: Array, part: slice, keys: int, options: Options
) -> tuple[Array, Array | float]:
    """(G,h,Q,C) of scaled queries (G,h,Q,D), -inf where hidden; and their derivative by the scaled scores."""
    logits, slope, queries = product(rows, key.swapaxes(1, 2)), 1.0, rows.shape[2]
    if options.softcap is not None:
        bent = np.tanh(logits / options.softcap)
        logits, slope = options.softcap * bent, 1 - bent**2
    ahead = np.arange(part.start, part.stop) - np.arange(keys - queries, keys)[:, None]  # (Q,C)
    if options.alibi_slopes is not None:
        slopes = options.alibi_slopes.astype(logits.dtype).reshape(*rows.shape[:2], 1, 1)
        logits = logits - slopes * np.abs(ahead).astype(logits.dtype)
    left, right = options.window or (None, None)
    hidden = (ahead > 0) & options.causal
    hidden |= False if left is None else ahead < -left
    hidden |= False if right is None else ahead > right
    return (np.where(hidden, -np.inf, logits) if hidden.any() else logits), slope


def scaled(query: Array, held: Held, options: Options) -> Array:
    """(H,Q,D) -> (G,h,Q,D), times the scale."""
    groups = held.read(slice(0, 0))[0].shape[0]
    group = len(query) // max(groups, 1)
    return query.reshape(groups, group, *query.shape[1:]) * scale_of(query, options.scale)


def scale_of(query: Array, scale: float | None) -> float:
    return max(query.shape[2], 1) ** -0.5 if scale is None else float(scale)


def finite(x: Array) -> Array:
    """0 for -inf, which stands for no keys at all: -inf - -inf would be NaN."""
    return np.where(np.isneginf(x), 0, x)


def product(rows: Array, matrix: Array) -> Array:
    """(G,h,Q,.) times (G,.,.), which all heads share."""
    groups, group, queries, size = rows.shape
    result = rows.reshape(groups, group * queries, size) @ matrix
    return result.reshape(groups, group, queries, matrix.shape[2])


def by_key(weights: Array, rows: Array) -> Array:
    """(G,h,Q,C) and (G,h,Q,.) -> (G,C,.), summed over all queries of all heads that share a key."""
    flat = (x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]) for x in (weights, rows))
    weights, rows = flat
    return weights.swapaxes(1, 2) @ rows
