"""The two layers of "Attention is all you need", figure 1. Letters as in layers.py; K length of the memory.

`weights` maps names to arrays: w_q, w_k, w_v, w_o (M,M), w_1 (M,F), b_1 (F), w_2 (F,M), b_2 (M), and gain_i,
shift_i (M) of the i-th norm, of which a decoder has three. Its attention to the memory has cross_w_q,
cross_w_k, cross_w_v, cross_w_o (M,M).
"""

from __future__ import annotations

from typing import Any

from qkverify.reference.layers import Sublayer, Weights, feed_forward, layer
from qkverify.reference.multi_head import multi_head_attention
from qkverify.reference.sizes import Array


def attend(weights: Weights, prefix: str = "", **options: Any) -> Sublayer:
    """Multi-head attention of x, to itself or to `context` if given, with the weights of this prefix."""
    w = [weights[prefix + name] for name in ("w_q", "w_k", "w_v", "w_o")]  # (M,M)
    return lambda x: multi_head_attention(x, *w, **options)


def feed(weights: Weights) -> Sublayer:
    """The feed-forward network of these weights."""
    return lambda x: feed_forward(x, *(weights[name] for name in ("w_1", "b_1", "w_2", "b_2")))


def encoder_layer(
    x: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: Array = 1e-5,
    key_lengths: Array | None = None, scale: Array | None = None,
) -> Array:  # fmt: skip
    """Self-attention, then feed-forward: x (B,L,M) -> (B,L,M).

    Tokens from key_lengths (B) on are padding: no token attends to them. scale is by default D^-1/2.
    """
    attention = attend(weights, heads=heads, key_lengths=key_lengths, scale=scale)
    return layer(x, weights, attention, feed(weights), norm_first=norm_first, eps=eps)


def decoder_layer(
    x: Array, memory: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: Array = 1e-5,
    memory_lengths: Array | None = None, scale: Array | None = None,
) -> Array:  # fmt: skip
    """Causal self-attention, attention to the memory, feed-forward: x (B,L,M), memory (B,K,M) -> (B,L,M).

    The memory is what the encoder gave, taken as it is; from memory_lengths (B) on it is padding.
    """
    self_attention = attend(weights, heads=heads, causal=True, scale=scale)
    cross = attend(weights, "cross_", heads=heads, context=memory, key_lengths=memory_lengths, scale=scale)
    return layer(x, weights, self_attention, cross, feed(weights), norm_first=norm_first, eps=eps)
