"""The layers of a transformer in NumPy, as a textbook writes them: one head after the other, one norm after the other.

`weights` maps names to arrays: w_q, w_k, w_v, w_o (M,M), w_1 (M,F), b_1 (F), w_2 (F,M), b_2 (M), gain_1, shift_1, ... (M),
and in a decoder cross_w_q, cross_w_k, cross_w_v, cross_w_o (M,M).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qkverify import implementation

Array = np.ndarray
Weights = Mapping[str, Array]
DTYPES = ("float32", "float64")


@implementation(name="numpy_feed_forward", dtypes=DTYPES)
def feed_forward(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """Two linear maps with a relu between them, for each position alike: x (B,L,M), w_1 (M,F), w_2 (F,M) -> (B,L,M)."""
    return np.maximum(x @ w_1 + b_1, 0) @ w_2 + b_2


def inner(x: Array, weights: Weights) -> Array:
    """The feed-forward network of a layer."""
    return feed_forward(x, weights["w_1"], weights["b_1"], weights["w_2"], weights["b_2"])


def norm(x: Array, weights: Weights, number: int, eps: float) -> Array:
    """Mean zero and variance one for each position, then the gains and shifts of the norm of this number."""
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(eps))
    return scaled * weights[f"gain_{number}"] + weights[f"shift_{number}"]


def attention(
    x: Array, source: Array, weights: Weights, heads: int, allowed: Array, prefix: str = ""
) -> Array:
    """Of x (B,L,M) to source (B,K,M) where seen, which broadcasts to (B,L,K): (B,L,M)."""
    w_q, w_k, w_v, w_o = (weights[prefix + name] for name in ("w_q", "w_k", "w_v", "w_o"))
    size = x.shape[-1] // heads
    output = np.zeros_like(x)
    for columns in (slice(head * size, (head + 1) * size) for head in range(heads)):
        query, key, value = (
            x @ w_q[:, columns],
            source @ w_k[:, columns],
            source @ w_v[:, columns],
        )  # (B,L,D), (B,K,D)
        scores = np.where(allowed, query @ key.swapaxes(-1, -2) * x.dtype.type(size**-0.5), -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        output += weight / weight.sum(-1, keepdims=True) @ value @ w_o[columns]
    return output


def visible(source: Array, lengths: Array | None) -> Array:
    """Which tokens of source (B,K,M) are no padding: (B,1,K)."""
    length = source.shape[1]
    ends = np.full(len(source), length) if lengths is None else lengths
    return np.arange(length) < ends[:, None, None]


@implementation(name="numpy_encoder", dtypes=DTYPES)
def encoder_layer(
    x: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5,
    key_lengths: Array | None = None,
) -> Array:  # fmt: skip
    """Self-attention and feed-forward, each added to its input and normalised: x (B,L,M) -> (B,L,M)."""
    allowed = visible(x, key_lengths)
    if norm_first:
        y = norm(x, weights, 1, eps)
        x = x + attention(y, y, weights, heads, allowed)
        return x + inner(norm(x, weights, 2, eps), weights)
    x = norm(x + attention(x, x, weights, heads, allowed), weights, 1, eps)
    return norm(x + inner(x, weights), weights, 2, eps)


@implementation(name="numpy_decoder", dtypes=DTYPES)
def decoder_layer(
    x: Array, memory: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5,
    memory_lengths: Array | None = None,
) -> Array:  # fmt: skip
    """Causal self-attention, attention to the memory, feed-forward: x (B,L,M), memory (B,K,M) -> (B,L,M)."""
    past, allowed = np.tri(x.shape[1], dtype=bool), visible(memory, memory_lengths)
    if norm_first:
        y = norm(x, weights, 1, eps)
        x = x + attention(y, y, weights, heads, past)
        x = x + attention(norm(x, weights, 2, eps), memory, weights, heads, allowed, "cross_")
        return x + inner(norm(x, weights, 3, eps), weights)
    x = norm(x + attention(x, x, weights, heads, past), weights, 1, eps)
    x = norm(x + attention(x, memory, weights, heads, allowed, "cross_"), weights, 2, eps)
    return norm(x + inner(x, weights), weights, 3, eps)


def log_softmax(scores: Array) -> Array:
    """The logarithms of the probabilities of the classes: (N,C)."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@implementation(name="numpy_cross_entropy", dtypes=DTYPES)
def cross_entropy(scores: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """1 - smoothing times the loss of the target, and smoothing times the mean loss: (N,C), (N) -> (N)."""
    losses = -log_softmax(scores)
    of_target, keep = losses[np.arange(len(targets)), targets], scores.dtype.type(1 - smoothing)
    return keep * of_target + scores.dtype.type(smoothing) * losses.mean(-1)


def cross_entropy_vjp(
    scores: Array, targets: Array, upstream: Array, *, smoothing: float = 0.0
) -> tuple[Array]:
    """softmax - target for each token, times upstream (N): the gradient in the scores (N,C)."""
    gradient = np.exp(log_softmax(scores)) - scores.dtype.type(smoothing / scores.shape[-1])
    gradient[np.arange(len(targets)), targets] -= scores.dtype.type(1 - smoothing)
    return (gradient * upstream[:, None],)
