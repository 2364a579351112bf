"""The gradients of what stands around attention in a layer, by the chain rule. Letters as in layers.py; N = B L.

Each takes `upstream`, the gradient of the result, and gives the gradients of its arguments by name.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.layers import linear
from qkverify.reference.sizes import Array

Gradients = dict[str, Array]


def flat(x: Array) -> Array:
    """All tokens one after another, so that a sum over them is one long sum: (B,L,M) -> (N,M)."""
    return np.reshape(x, (-1, x.shape[-1]))


def weight_vjp(x: Array, upstream: Array) -> Array:
    """The gradient of w in x w, summed over all tokens: (B,L,M), (B,L,F) -> (M,F).

    A sum of products, as in `groups.per_key_head`: where w was broadcast over the batch, each entry's may be stored first.
    """
    return stored(np.sum(np.swapaxes(x, -1, -2) @ upstream, axis=0))


def feed_forward_vjp(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array, upstream: Array) -> Gradients:
    """Two products and a step between them, the slope of relu: upstream (B,L,M)."""
    inner = linear(x, w_1, b_1)                                             # (B,L,F)
    hidden = stored(np.maximum(inner, 0.0))                                 # (B,L,F)
    d_inner = stored(stored(upstream @ np.swapaxes(w_2, 0, 1)) * np.heaviside(inner, 0.0))  # (B,L,F)
    return {
        "x": stored(d_inner @ np.swapaxes(w_1, 0, 1)),                      # (B,L,M)
        "w_1": weight_vjp(x, d_inner), "b_1": stored(np.sum(flat(d_inner), axis=0)),
        "w_2": weight_vjp(hidden, upstream), "b_2": stored(np.sum(flat(upstream), axis=0)),
    }  # fmt: skip


def layer_norm_vjp(x: Array, gain: Array, shift: Array, upstream: Array, *, eps: Array = 1e-5) -> Gradients:
    """(d - mean(d) - y mean(d y)) / deviation with d = upstream gain and y the token before its gain."""
    size = x.shape[-1]
    centred = x - np.sum(x, axis=-1, keepdims=True) / size                  # (B,L,M)
    factor = 1.0 / np.sqrt(np.sum(centred * centred, axis=-1, keepdims=True) / size + eps)  # (B,L,1)
    y, d = centred * factor, upstream * gain                                # (B,L,M)
    along = np.sum(d * y, axis=-1, keepdims=True) / size                    # (B,L,1)
    d_x = factor * (d - np.sum(d, axis=-1, keepdims=True) / size - y * along)  # (B,L,M)
    sums = [stored(np.sum(flat(part), axis=0)) for part in (upstream * y, upstream)]  # (M)
    return {"x": stored(d_x), "gain": sums[0], "shift": sums[1]}
