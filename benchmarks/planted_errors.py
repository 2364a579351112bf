"""Attention whose arithmetic is right but for one planted error of known size, in two models of rounding.

    scale           the softmax scale, too large by a share
    normaliser      the row sums
    one weight      the weight of one query and one key of each head
    tile            the weights of the last 16 keys, too small by a share; 1 drops them
    far tile        likewise of keys 512 to 527, in rows of more
    gradients       gradients of query, key and value
    backward scale  the softmax scale from which the backward pass computes weights again
    delta           rowsum(dO O)

Dimension letters: B batch, H heads, Q queries, K keys, D key size, E value size.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from qkverify.contract import describe
from qkverify.contract.declaration import Implementation

Array = np.ndarray
FORWARD = ("scale", "normaliser", "one weight", "tile", "far tile")
BACKWARD = ("gradients", "backward scale", "delta")
MODELS = (
    ("float32", "plain"),
    ("float16", "fused"),
    ("bfloat16", "fused"),
    ("float16", "eager"),
    ("bfloat16", "eager"),
)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TILE, FAR = 16, 512


@dataclass(frozen=True)
class Planted:
    """Attention and its gradients in one model, with one of `FORWARD` or `BACKWARD` off by `share`; 0 is right code."""

    dtype: str
    model: str
    error: str
    share: float

    def times(self, error: str, x: Array) -> Array:
        """x (1 + share) where this is the planted error, else x. Multiplied in float64: 1 + u / 2 is 1 in float32."""
        return (x * np.float64(1 + self.share)).astype(np.float32) if error == self.error else x

    def less(self, error: str, x: Array) -> Array:
        """Likewise x (1 - share)."""
        return (x * np.float64(1 - self.share)).astype(np.float32) if error == self.error else x

    def stored(self, x: Array) -> Array:
        """In the dtype, as a result or an operand of a matrix product; computed with in float32."""
        return x.astype(DTYPES[self.dtype]).astype(np.float32)

    def step(self, x: Array) -> Array:
        """What an operation gives: op by op it is stored."""
        return self.stored(x) if self.model == "eager" else x

    def weights(self, query: Array, key: Array, error_of_scale: str) -> Array:
        """softmax(query key^T / sqrt(D)), (B,H,Q,K), in float32. Errors are planted before a result is stored, which would undo
        those below half a unit."""
        scaled = self.step(self.times(error_of_scale, query @ turned(key))) * np.float32(
            query.shape[-1] ** -0.5
        )
        scores = self.step(scaled)
        weights = self.step(np.exp(self.step(scores - scores.max(-1, keepdims=True))))
        weights = weights / self.times("normaliser", self.step(weights.sum(-1, keepdims=True)))
        at = ..., min(2, query.shape[2] - 1), min(3, key.shape[2] - 1)
        weights[at] = self.times("one weight", weights[at])
        if key.shape[2] > TILE:
            weights[..., -TILE:] = self.less("tile", weights[..., -TILE:])
        weights[..., FAR : FAR + TILE] = self.less("far tile", weights[..., FAR : FAR + TILE])
        return self.step(weights)

    @np.errstate(over="ignore", invalid="ignore")
    def attention(self, query: Array, key: Array, value: Array) -> Array:
        """(B,H,Q,E)"""
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        return (self.stored(self.weights(q, k, "scale")) @ v).astype(query.dtype)

    @np.errstate(over="ignore", invalid="ignore")
    def attention_vjp(self, query: Array, key: Array, value: Array, upstream: Array) -> tuple[Array, ...]:
        """Gradients of query (B,H,Q,D), key (B,H,K,D) and value (B,H,K,E)."""
        q, k, v, d_output = (x.astype(np.float32) for x in (query, key, value, upstream))
        weights = self.weights(q, k, "backward scale")
        d_weights = self.step(d_output @ turned(v))
        delta = self.times("delta", self.step((weights * d_weights).sum(-1, keepdims=True)))
        d_scores = self.stored(self.step(weights * self.step(d_weights - delta)))
        scale = np.float32(q.shape[-1] ** -0.5)
        gradients = (
            d_scores @ k * scale,
            turned(d_scores) @ q * scale,
            turned(self.stored(weights)) @ d_output,
        )
        return tuple(self.times("gradients", x).astype(query.dtype) for x in gradients)

    def implementation(self) -> Implementation:
        """It as a user would have it verified, who declares no precision."""

        def attention(query: Array, key: Array, value: Array) -> Array:
            return self.attention(query, key, value)

        return describe(
            attention, name=f"planted: {self.error}", arrays="numpy", dtypes=(self.dtype,), vjp=self.attention_vjp,
            requires=("B >= 1", "Q >= 1", "K >= 1", "D >= 1", "G == H"),
        )  # fmt: skip


def turned(x: Array) -> Array:
    """The last two axes exchanged."""
    return x.swapaxes(-1, -2)
