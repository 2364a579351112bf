"""Attention over tiles of keys with a running maximum, in steps (Milakov and Gimelshein 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call, uninitialised
from qkverify.implementations.mutants.correct.textbook import Step, Textbook, softcap, weighted_sum

TILE = 16


def whole_tiles(call: Call, array: np.ndarray) -> np.ndarray:
    """(B, H, K, .) lengthened to whole tiles. What follows the last key in memory is anything."""
    missing = -call.K % TILE
    return np.concatenate(
        [array, uninitialised((*array.shape[:2], missing, array.shape[3]), array.dtype)], axis=2
    )


def inside(call: Call, columns: np.ndarray) -> np.ndarray:
    """Which columns of a tile are keys at all."""
    return columns < call.K


def cap_then_hide(call: Call, scores: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return np.where(inside, softcap(call, scores), -np.inf)


def rescale(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """What the sums so far are worth when the maximum rises from `old` to `new`; nothing at the start."""
    return np.where(np.isneginf(old), 0, np.exp(old - new))


def carry(carried: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return carried * factor


def tile_weights(call: Call, weights: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """The weights that meet the values: this tile's."""
    return weights


@dataclass(frozen=True)
class Tiled(Textbook):
    """`Textbook` with the softmax taken tile by tile; the whole weight matrix never exists."""

    inside: Step = inside
    cap_then_hide: Step = cap_then_hide
    rescale: Step = rescale
    carry_total: Step = carry
    carry_output: Step = carry
    tile_weights: Step = tile_weights

    def tile_logits(
        self, call: Call, products: np.ndarray, start: int, added: np.ndarray, visible: np.ndarray
    ) -> Any:
        """(B, H, Q, TILE): the scores of one tile; -inf where there is no key or it is not seen."""
        columns = np.arange(start, start + TILE)
        capped = self.cap_then_hide(call, products * self.scale(call), self.inside(call, columns))
        here = np.minimum(
            columns, call.K - 1
        )  # a column past the last key reads the last one's bias and mask
        return np.where(visible[..., here], capped + added[..., here], -np.inf).astype(call.dtype)

    def __call__(self, call: Call) -> Any:
        call = self.prepare(call)
        key = whole_tiles(call, self.expand(call, self.load_key(call)))
        value = whole_tiles(call, self.expand(call, self.load_value(call)))
        query, visible = self.load_query(call), self.visible(call)
        added = self.bias(call, np.zeros(visible.shape, call.dtype))
        top = np.full((call.B, call.H, call.Q, 1), -np.inf, call.dtype)
        total, output, weights = np.zeros_like(top), np.zeros((*top.shape[:3], call.E), call.dtype), None
        for start in range(0, call.K, TILE):
            tile = slice(start, start + TILE)
            products = self.products(call, query, key[:, :, tile])
            logits = self.tile_logits(call, products, start, added, visible)
            old, top = top, np.maximum(top, logits.max(axis=-1, keepdims=True))
            current = np.exp(logits - np.where(np.isneginf(top), 0, top))
            weights = self.tile_weights(call, current, weights)
            factor = self.rescale(old, top)
            here = weighted_sum(weights, value[:, :, tile], ~np.isneginf(logits))
            total = self.carry_total(total, factor) + current.sum(axis=-1, keepdims=True)
            output = self.carry_output(output, factor) + here
        return self.finish(call, top, total, output)

    def finish(self, call: Call, top: np.ndarray, total: np.ndarray, output: np.ndarray) -> Any:
        """Output and log-sum-exp from the running sums. A sink joins as one more tile, without a value."""
        if call.sinks is not None:
            sink = call.sinks.astype(call.dtype)[:, None, None]
            old, top = top, np.maximum(top, sink)
            total = total * rescale(old, top) + np.exp(sink - top)
            output = output * rescale(old, top)
        output = self.store(call, output / np.where(total == 0, 1, total), total > 0)
        return (output, (top + np.log(total))[..., 0]) if call.return_lse else output


TILED = Tiled()
