"""The gradients of what stands around attention in a layer, by the chain rule. Letters as in layers.py; N = B L.

Each takes `upstream`, the gradient of the result, and gives the gradients of its arguments by name.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.layers import linear
from qkverify.reference.norms_vjp import Gradients, flat
from qkverify.reference.sizes import Array


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
