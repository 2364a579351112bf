"""The gated feed-forward network with SiLU in NumPy, with its gradients by hand."""

from __future__ import annotations

import numpy as np

from qkverify import implementation

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    """By the exponential that is at most one."""
    small = np.exp(-np.abs(x))
    return np.where(x > 0, x.dtype.type(1), small) / (1 + small)


@implementation(name="numpy_swiglu", dtypes=("float32", "float64"))
def swiglu(x: Array, w_gate: Array, w_up: Array, w_down: Array) -> Array:
    """Two maps, of which one is the gate of the other: x (B,L,M), w_gate and w_up (M,F), w_down (F,M) -> (B,L,M)."""
    gate = x @ w_gate
    return (gate * sigmoid(gate) * (x @ w_up)) @ w_down


def swiglu_vjp(
    x: Array, w_gate: Array, w_up: Array, w_down: Array, upstream: Array
) -> tuple[Array, Array, Array, Array]:
    """The gradients of x and the weights."""
    gate, up = x @ w_gate, x @ w_up
    share, d_hidden = sigmoid(gate), upstream @ w_down.T
    active = gate * share
    d_up, d_gate = d_hidden * active, d_hidden * up * share * (1 + gate * (1 - share))
    rows = x.reshape(-1, x.shape[-1])
    inner = [part.reshape(-1, part.shape[-1]) for part in (d_gate, d_up, active * up)]
    d_down = inner[2].T @ upstream.reshape(rows.shape)
    return d_gate @ w_gate.T + d_up @ w_up.T, rows.T @ inner[0], rows.T @ inner[1], d_down
