"""The gradients of the two layers of "Attention is all you need". Letters and weights as in encoder_decoder.py."""

from __future__ import annotations

from typing import Any

from qkverify.reference.encoder_decoder import attend, feed
from qkverify.reference.layer_vjp import Pull, layer_vjp
from qkverify.reference.layers import Sublayer, Weights
from qkverify.reference.layers_vjp import feed_forward_vjp
from qkverify.reference.multi_head_vjp import multi_head_vjp
from qkverify.reference.norms_vjp import Gradients
from qkverify.reference.sizes import Array


def attend_vjp(weights: Weights, prefix: str = "", *, delta: str, **options: Any) -> tuple[Sublayer, Pull]:
    """Multi-head attention as a sublayer, and its gradients; that of its context is the memory's."""
    w = {name: weights[prefix + name] for name in ("w_q", "w_k", "w_v", "w_o")}  # (M,M)

    names = {name: prefix + name for name in w} | {"context": "memory"}

    def pull(x: Array, upstream: Array) -> Gradients:
        gradients = multi_head_vjp(x, **w, upstream=upstream, delta=delta, **options)
        return {names.get(name, name): gradient for name, gradient in gradients.items()}

    return attend(weights, prefix, **options), pull


def feed_vjp(weights: Weights) -> tuple[Sublayer, Pull]:
    """The feed-forward network as a sublayer, and its gradients."""
    w = {name: weights[name] for name in ("w_1", "b_1", "w_2", "b_2")}
    return feed(weights), lambda x, upstream: feed_forward_vjp(x, **w, upstream=upstream)


def encoder_layer_vjp(
    x: Array, weights: Weights, upstream: Array, *, heads: int, norm_first: bool = False, eps: Array = 1e-5,
    key_lengths: Array | None = None, scale: Array | None = None, delta: str = "weights",
) -> Gradients:  # fmt: skip
    """The gradients of sum(upstream * encoder_layer) in x and in each of the weights, by name; upstream (B,L,M)."""
    self_attention = attend_vjp(weights, heads=heads, key_lengths=key_lengths, scale=scale, delta=delta)
    return layer_vjp(x, weights, upstream, self_attention, feed_vjp(weights), norm_first=norm_first, eps=eps)


def decoder_layer_vjp(
    x: Array, memory: Array, weights: Weights, upstream: Array, *, heads: int, norm_first: bool = False,
    eps: Array = 1e-5, memory_lengths: Array | None = None, scale: Array | None = None, delta: str = "weights",
) -> Gradients:  # fmt: skip
    """The gradients of sum(upstream * decoder_layer) in x, the memory and each of the weights, by name."""
    self_attention = attend_vjp(weights, heads=heads, causal=True, scale=scale, delta=delta)
    cross = attend_vjp(
        weights, "cross_", heads=heads, context=memory, key_lengths=memory_lengths, scale=scale, delta=delta
    )
    return layer_vjp(
        x, weights, upstream, self_attention, cross, feed_vjp(weights), norm_first=norm_first, eps=eps
    )
