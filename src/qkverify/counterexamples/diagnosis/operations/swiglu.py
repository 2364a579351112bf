"""The mistakes of SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.feed_forward import gelu, relu, tanh_gelu
from qkverify.counterexamples.diagnosis.operations.kind import (
    Example,
    Gradients,
    Mistakes,
    OperationKind,
    normal,
)
from qkverify.reference.attention import stored
from qkverify.reference.gated import sigmoid, silu, swiglu, swiglu_vjp
from qkverify.runs.run import Run


def _examples(run: Run) -> list[Example]:
    sizes = [(2, 5, 4, 7), (3, 2, 6, 5), (1, 7, 3, 9), (2, 1, 5, 3), (3, 4, 2, 8), (2, 3, 8, 6)]
    examples = []
    for i, (batch, length, width, inner) in enumerate(sizes):
        shapes = ((batch, length, width), (width, inner), (width, inner), (inner, width))
        times = (1.0, *(shape[0] ** -0.5 for shape in shapes[1:]))
        arrays = [
            normal(run, 10 * i + j, *n, times=t) for j, (n, t) in enumerate(zip(shapes, times, strict=True))
        ]
        examples.append(Example(tuple(arrays), {}, shapes[0]))
    return examples


def _gated(hidden: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The network with another way from gate and up to what is mapped down."""

    def compute(x: Any, w_gate: Any, w_up: Any, w_down: Any) -> Any:
        return stored(stored(hidden(stored(x @ w_gate), stored(x @ w_up))) @ w_down)

    return compute


MISTAKES: Mistakes = (
    ("a gated network with GELU instead of SiLU (GEGLU)", _gated(lambda gate, up: stored(gelu(gate)) * up)),
    ("a gated network with GELU, in its approximation by tanh, instead of SiLU",
     _gated(lambda gate, up: stored(tanh_gelu(gate)) * up)),
    ("a gated network with relu instead of SiLU (ReGLU)", _gated(lambda gate, up: relu(gate) * up)),
    ("a gated network with a sigmoid instead of SiLU (GLU)", _gated(lambda gate, up: stored(sigmoid(gate)) * up)),
    ("a gated network without activation", _gated(lambda gate, up: gate * up)),
    ("a gated network whose gate and up are exchanged", _gated(lambda gate, up: stored(silu(up)) * gate)),
    ("a gated network whose gate and up are both activated", _gated(lambda gate, up: stored(silu(gate)) * stored(silu(up)))),
    ("a gated network whose activation comes after the product", _gated(lambda gate, up: silu(stored(gate * up)))),
    ("a network that adds gate and up instead of multiplying them", _gated(lambda gate, up: stored(silu(gate)) + up)),
    ("a network without its up map", _gated(lambda gate, up: silu(gate))),
    ("a network that adds its input", lambda x, *weights: stored(x + swiglu(x, *weights))),
)  # fmt: skip


def _sloped(slope: Callable[[Any], Any]) -> Callable[..., Any]:
    """Gradients with another slope of the activation."""

    def compute(x: Any, w_gate: Any, w_up: Any, w_down: Any, upstream: Any) -> dict[str, Any]:
        gate, up = stored(x @ w_gate), stored(x @ w_up)
        d_hidden = stored(upstream @ np.swapaxes(w_down, 0, 1))
        d_up, d_gate = stored(d_hidden * silu(gate)), stored(stored(d_hidden * up) * slope(gate))
        right = swiglu_vjp(x, w_gate, w_up, w_down, upstream)
        d_x = stored(stored(d_gate @ np.swapaxes(w_gate, 0, 1)) + stored(d_up @ np.swapaxes(w_up, 0, 1)))
        return {**right, "x": d_x, "w_gate": stored(np.sum(np.swapaxes(x, -1, -2) @ d_gate, axis=0))}

    return compute


GRADIENTS = Gradients(("x", "w_gate", "w_up", "w_down"), swiglu_vjp, (
    ("those of a gate that is a constant", _sloped(lambda gate: 0.0 * gate)),
    ("those with the sigmoid for the slope of SiLU", _sloped(sigmoid)),
    ("those with SiLU for its own slope", _sloped(silu)),
))  # fmt: skip

KIND = OperationKind(_examples, swiglu, MISTAKES, (
    ("with one token", lambda e: e.shape[1] == 1), ("with one batch entry", lambda e: e.shape[0] == 1),
), GRADIENTS)  # fmt: skip
