"""What stands around attention in a layer: "Attention is all you need", sections 3.1 and 3.3.

Letters: B batch, L length, M model size, F inner size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.norms import layer_norm
from qkverify.reference.sizes import Array

Weights = Mapping[str, Array]  # by name, see encoder_decoder.py
Sublayer = Callable[[Array], Array]  # (B,L,M) -> (B,L,M)


def linear(x: Array, w: Array, b: Array) -> Array:
    """x w + b as one sum, b the weight of a constant 1: x (B,L,M), w (M,F), b (F) -> (B,L,F)."""
    with_one = np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)    # (B,L,M+1)
    return with_one @ np.concatenate([w, b[None]], axis=0)                  # (B,L,F)


def feed_forward(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """relu(x W_1 + b_1) W_2 + b_2, each position by itself: (B,L,M) -> (B,L,M)."""
    hidden = stored(np.maximum(linear(x, w_1, b_1), 0.0))                   # (B,L,F)
    return stored(linear(hidden, w_2, b_2))                                 # (B,L,M)


def layer(x: Array, weights: Weights, *sublayers: Sublayer, norm_first: bool, eps: Array) -> Array:
    """norm(x + sublayer(x)), or x + sublayer(norm(x)) if the norm comes first, sublayer after sublayer."""
    for i, sublayer in enumerate(sublayers, start=1):
        norm = {"gain": weights[f"gain_{i}"], "shift": weights[f"shift_{i}"], "eps": eps}
        branch = sublayer(layer_norm(x, **norm) if norm_first else x)       # (B,L,M)
        x = stored(x + branch) if norm_first else layer_norm(stored(x + branch), **norm)
    return x
