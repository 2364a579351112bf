"""The backward pass in steps: dV = P' g, dP = g V', dS = P (dP - delta), dQ = dS K, dK = dS' Q."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.textbook import TEXTBOOK, Step, Textbook, weighted_sum

TILE = 16


def weights(call: Call, scores: np.ndarray, lse: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """exp(scores - lse), computed again from the log-sum-exp; nothing where no key is seen."""
    return np.where(seen, np.exp(scores - lse), 0)


def delta(call: Call, weights: np.ndarray, d_weights: np.ndarray) -> np.ndarray:
    return (weights * d_weights).sum(axis=-1, keepdims=True)


def through_softmax(weights: np.ndarray, d_weights: np.ndarray, delta: np.ndarray) -> np.ndarray:
    return weights * (d_weights - delta)


def through_softcap(call: Call, d_scores: np.ndarray, capped: np.ndarray) -> np.ndarray:
    capped_at_all = call.softcap is not None and np.isfinite(call.softcap)
    return d_scores * (1 - (capped / call.softcap) ** 2) if capped_at_all else d_scores


def through_scale(call: Call, d_scores: np.ndarray, scale: float) -> np.ndarray:
    return d_scores * scale


def through_expand(call: Call, gradient: np.ndarray) -> np.ndarray:
    """(B, H, K, .) -> (B, G, K, .): a head that several query heads read gets the sum of their gradients."""
    return gradient.reshape(call.B, call.G, call.group, *gradient.shape[2:]).sum(axis=2)


def read_upstream(call: Call, upstream: np.ndarray) -> np.ndarray:
    return upstream


def store_key(call: Call, gradient: np.ndarray) -> np.ndarray:
    """The key's gradient as it is handed out."""
    return gradient


def whole_tiles(array: np.ndarray, axis: int, fill: Any) -> np.ndarray:
    """`array` lengthened along the keys to whole tiles, as a kernel loads them."""
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, -array.shape[axis] % TILE)
    return np.pad(array, missing, constant_values=fill)


@dataclass(frozen=True)
class Backward:
    """Every step of the backward pass; calling it gives the gradients of query, key and value."""

    forward: Textbook = TEXTBOOK
    read_upstream: Step = read_upstream
    weights: Step = weights
    delta: Step = delta
    through_softmax: Step = through_softmax
    through_softcap: Step = through_softcap
    through_scale: Step = through_scale
    through_expand: Step = through_expand
    store_key: Step = store_key

    def but(self, **steps: Step) -> Backward:
        """The same backward pass with some steps exchanged."""
        return dataclasses.replace(self, **steps)

    def __call__(self, call: Call, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        call = self.forward.prepare(call)
        upstream = self.read_upstream(call, upstream)
        whole = call.K
        key, value = self.forward.expand(call, call.key), self.forward.expand(call, call.value)
        scale = self.forward.scale(call)
        capped = self.forward.softcap(call, self.forward.products(call, call.query, key) * scale)
        biased = self.forward.bias(call, capped)
        logits = self.forward.hide(call, biased, self.forward.visible(call))
        lse = self.forward.softmax(call, logits)[1][..., None]
        seen = whole_tiles(~np.isneginf(logits), 3, False)
        biased, capped = whole_tiles(biased, 3, 0), np.where(seen, whole_tiles(capped, 3, 0), 0)
        key, value = whole_tiles(key, 2, 0), whole_tiles(value, 2, 0)

        p = self.weights(call, biased, lse, seen)  # (B, H, Q, K), K in whole tiles
        d_p = np.where(seen, upstream @ value.swapaxes(-1, -2), 0)
        d_s = self.through_softmax(p, d_p, self.delta(call, p, d_p))
        d_s = self.through_scale(call, self.through_softcap(call, d_s, capped), scale)
        d_query = weighted_sum(d_s, key, seen)
        d_key = weighted_sum(d_s.swapaxes(-1, -2), call.query, seen.swapaxes(-1, -2))[:, :, :whole]
        d_value = (p.swapaxes(-1, -2) @ upstream)[:, :, :whole]
        d_key, d_value = self.through_expand(call, d_key), self.through_expand(call, d_value)
        return (d_query.astype(call.dtype), self.store_key(call, d_key.astype(call.dtype)),
                d_value.astype(call.dtype))  # fmt: skip


BACKWARD = Backward()
