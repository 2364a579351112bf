"""The gated feed-forward network with SiLU: "GLU variants improve transformer" (arXiv:2002.05202), and its gradients.

Letters: B batch, L length, M model size, F inner size.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.layers_vjp import weight_vjp
from qkverify.reference.norms_vjp import Gradients
from qkverify.reference.sizes import Array


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the exponential that is at most one."""
    small = np.exp(-np.maximum(x, -x))                                      # exp(-|x|)
    return np.where(x > 0, 1.0, small) / (1.0 + small)


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def swiglu(x: Array, w_gate: Array, w_up: Array, w_down: Array) -> Array:
    """(silu(x w_gate) * (x w_up)) w_down, each token by itself: (B,L,M) -> (B,L,M)."""
    gate, up = stored(x @ w_gate), stored(x @ w_up)                         # (B,L,F)
    return stored(stored(stored(silu(gate)) * up) @ w_down)                 # (B,L,M)


def swiglu_vjp(x: Array, w_gate: Array, w_up: Array, w_down: Array, upstream: Array) -> Gradients:
    """By the chain rule; the slope of silu is sigmoid(x) (1 + x (1 - sigmoid(x))): upstream (B,L,M)."""
    gate, up = stored(x @ w_gate), stored(x @ w_up)                         # (B,L,F)
    share = sigmoid(gate)                                                   # (B,L,F)
    active, slope = stored(gate * share), share * (1.0 + gate * (1.0 - share))
    d_hidden = stored(upstream @ np.swapaxes(w_down, 0, 1))                 # (B,L,F)
    d_up, d_gate = stored(d_hidden * active), stored(stored(d_hidden * up) * slope)
    parts = [stored(d @ np.swapaxes(w, 0, 1)) for d, w in ((d_gate, w_gate), (d_up, w_up))]  # (B,L,M)
    return {
        "x": stored(parts[0] + parts[1]), "w_gate": weight_vjp(x, d_gate), "w_up": weight_vjp(x, d_up),
        "w_down": weight_vjp(stored(active * up), upstream),
    }  # fmt: skip
