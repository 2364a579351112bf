"""The layers around attention in steps, right; the keywords after the options are the steps that a mutant may replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.multi_head import merge, split

Array = np.ndarray
Weights = Mapping[str, Array]


def feed_forward(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """x (B, L, M), w_1 (M, F), b_1 (F), w_2 (F, M), b_2 (M) -> (B, L, M)."""
    return np.maximum(x @ w_1 + b_1, 0) @ w_2 + b_2


def norm(x: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) over the features: (B, L, M)."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(eps))


def before(x: Array, lengths: Array | None) -> Array:
    """Whether the tokens of x (B, K, M) stand before the padding: (B, 1, K)."""
    ends = np.full(len(x), x.shape[1]) if lengths is None else lengths
    return np.arange(x.shape[1]) < ends[:, None, None]


def attend(x: Array, source: Array, weights: Weights, heads: int, seen: Array, prefix: str = "") -> Array:
    """Attention of x (B, L, M) to source (B, K, M) where `seen`, which broadcasts to (B, L, K)."""
    w_q, w_k, w_v, w_o = (weights[prefix + name] for name in ("w_q", "w_k", "w_v", "w_o"))
    query, key, value = split(x @ w_q, heads), split(source @ w_k, heads), split(source @ w_v, heads)
    scores = query @ key.swapaxes(-1, -2) * x.dtype.type(query.shape[-1] ** -0.5)
    scores = np.where(np.broadcast_to(seen, (len(x), x.shape[1], source.shape[1]))[:, None], scores, -np.inf)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    return merge(weight / weight.sum(-1, keepdims=True) @ value) @ w_o


def after(x: Array, branch: Array, normed: Callable[[Array], Array]) -> Array:
    """norm(x + sublayer(x)), `branch` being sublayer(x)."""
    return normed(x + branch)


def stack(
    x: Array, weights: Weights, sublayers: list[Callable[[Array], Array]], norm_first: bool, eps: float,
    norm: Callable[[Array, float], Array] = norm, after: Callable[..., Array] = after,
) -> Array:  # fmt: skip
    """The sublayers in their order, each with its residual path and its norm."""
    for i, sublayer in enumerate(sublayers, start=1):

        def normed(y: Array, i: int = i) -> Array:
            return norm(y, eps) * weights[f"gain_{i}"] + weights[f"shift_{i}"]

        x = x + sublayer(normed(x)) if norm_first else after(x, sublayer(x), normed)
    return x


def inner(weights: Weights) -> Callable[[Array], Array]:
    """The feed-forward network of a layer."""
    return lambda y: feed_forward(y, weights["w_1"], weights["b_1"], weights["w_2"], weights["b_2"])


def encoder_layer(
    x: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5,
    key_lengths: Array | None = None, before: Callable[..., Array] = before, attend: Callable[..., Array] = attend,
    **steps: Any,
) -> Array:  # fmt: skip
    """x (B, L, M) -> (B, L, M)."""
    seen = before(x, key_lengths)
    sublayers = [lambda y: attend(y, y, weights, heads, seen), inner(weights)]
    return stack(x, weights, sublayers, norm_first, eps, **steps)


def decoder_layer(
    x: Array, memory: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5,
    memory_lengths: Array | None = None, past: Array | None = None, before: Callable[..., Array] = before,
    cross: Callable[..., Array] = attend,
) -> Array:  # fmt: skip
    """x (B, L, M), memory (B, K, M) -> (B, L, M)."""
    past = np.tri(x.shape[1], dtype=bool) if past is None else past
    seen = before(memory, memory_lengths)
    sublayers = [
        lambda y: attend(y, y, weights, heads, past),
        lambda y: cross(y, memory, weights, heads, seen, "cross_"),
        inner(weights),
    ]
    return stack(x, weights, sublayers, norm_first, eps)


def log_softmax(scores: Array) -> Array:
    """(N, C) -> (N, C)."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def target(targets: Array, classes: int, smoothing: float, dtype: Any) -> Array:
    """1 - smoothing on the target, smoothing / C on every class: (N) -> (N, C)."""
    return ((1 - smoothing) * np.eye(classes)[targets] + smoothing / classes).astype(dtype)


def cross_entropy(
    scores: Array, targets: Array, *, smoothing: float = 0.0, target: Callable[..., Array] = target,
    logarithms: Callable[[Array], Array] = log_softmax,
) -> Array:  # fmt: skip
    """scores (N, C), targets (N) -> (N)."""
    return -(target(targets, scores.shape[-1], smoothing, scores.dtype) * logarithms(scores)).sum(-1)


def cross_entropy_vjp(
    scores: Array,
    targets: Array,
    upstream: Array,
    *,
    smoothing: float = 0.0,
    target: Callable[..., Array] = target,
) -> tuple[Array]:
    """softmax - target, times upstream (N): (N, C)."""
    wanted = target(targets, scores.shape[-1], smoothing, scores.dtype)
    return ((np.exp(log_softmax(scores)) - wanted) * upstream[:, None],)
