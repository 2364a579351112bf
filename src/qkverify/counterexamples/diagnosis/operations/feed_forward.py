"""The mistakes of a feed-forward network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Example, Mistakes, OperationKind, normal
from qkverify.reference.attention import stored
from qkverify.reference.layers import feed_forward, linear
from qkverify.rounding import Bounded
from qkverify.runs.run import Run


def _examples(run: Run) -> list[Example]:
    sizes = [(2, 5, 4, 7), (3, 2, 6, 5), (1, 7, 3, 9), (2, 1, 5, 3), (3, 4, 2, 8), (2, 3, 8, 6)]
    examples = []
    for i, (batch, length, width, inner) in enumerate(sizes):
        shapes = ((batch, length, width), (width, inner), (inner,), (inner, width), (width,))
        arrays = [
            normal(run, 10 * i + j, *n, times=n[0] ** -0.5 if j % 2 else 1.0) for j, n in enumerate(shapes)
        ]
        examples.append(Example(tuple(arrays), {}, shapes[0]))
    return examples


def relu(x: Any) -> Any:
    return np.maximum(x, 0.0)


def gelu(x: Bounded) -> Bounded:
    """x times the normal distribution function, whose slope is at most 1.13. The error function is as good as exp is."""
    share = np.vectorize(math.erf, otypes=[float])(x.value / math.sqrt(2)) / 2 + 0.5
    unit = x.precision.accumulate.unit
    return Bounded(
        x.value * share, 1.13 * x.errors + np.abs(x.value) * unit * (x.precision.exp_ulps + 4), x.precision
    )


def tanh_gelu(x: Bounded) -> Any:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


ACTIVATIONS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("GELU instead of relu", gelu),
    ("GELU, in its approximation by tanh, instead of relu", tanh_gelu),
    ("SiLU, x sigmoid(x), instead of relu", lambda x: x * _sigmoid(x)),
    ("a sigmoid instead of relu", _sigmoid),
    ("tanh instead of relu", np.tanh),
    ("a relu that lets 0.01 x through below zero", lambda x: np.where(x.value > 0, x, x * 0.01)),
    ("the square of relu", lambda x: relu(x) * relu(x)),
    ("no relu between its maps", lambda x: x),
)  # fmt: skip


def fed(activation: Callable[[Any], Any] = relu, *, b_1: float = 1.0, b_2: float = 1.0,
        last: Callable[[Any], Any] = lambda y: y) -> Callable[..., Any]:  # fmt: skip
    """The network with another activation, biases multiplied by whole numbers, or a step more at its end."""

    def compute(x: Any, w_1: Any, first: Any, w_2: Any, second: Any) -> Any:
        hidden = stored(activation(linear(x, w_1, first * b_1)))
        return stored(last(linear(hidden, w_2, second * b_2)))

    return compute


def _relu_before_bias(x: Any, w_1: Any, b_1: Any, w_2: Any, b_2: Any) -> Any:
    return stored(linear(stored(relu(x @ w_1) + b_1), w_2, b_2))


def _as_it_lies(x: Any, *weights: Any) -> Any:
    """(B,L,M) is read as (B,M,L), and what comes of it is put back rightly."""
    return feed_forward(x.reshape(x.shape[0], x.shape[2], x.shape[1]).swapaxes(1, 2), *weights)


STEPS: Mistakes = (
    *((f"with {text}", fed(activation)) for text, activation in ACTIVATIONS),
    ("whose relu comes before the bias", _relu_before_bias),
    ("with a relu after the second map too", fed(last=relu)),
    ("without the first bias", fed(b_1=0.0)),
    ("without the second bias", fed(b_2=0.0)),
    ("without both biases", fed(b_1=0.0, b_2=0.0)),
    ("that adds the first bias twice", fed(b_1=2.0)),
    ("that adds the second bias twice", fed(b_2=2.0)),
)  # fmt: skip

KIND = OperationKind(_examples, feed_forward, (
    *((f"a feed-forward network {text}", compute) for text, compute in STEPS),
    ("a feed-forward network whose input (B,L,M) is read as (B,M,L) as it lies, instead of with swapped axes", _as_it_lies),
    ("a feed-forward network that adds its input", lambda x, *weights: stored(x + feed_forward(x, *weights))),
), (("with one token", lambda e: e.shape[1] == 1), ("with one batch entry", lambda e: e.shape[0] == 1)))  # fmt: skip
