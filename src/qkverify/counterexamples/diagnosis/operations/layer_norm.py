"""The mistakes of layer norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Gradients, Mistakes, OperationKind
from qkverify.counterexamples.diagnosis.operations.norm_steps import examples, mean, root
from qkverify.reference.attention import stored
from qkverify.reference.norms_vjp import flat
from qkverify.runs.exact_norms import computed_layer_norm, gain, layer_norm_gradients


def _norm(
    centred: Callable[[Any], Any] = lambda x: x - mean(x),
    divisor: Callable[[Any, Any], Any] = root,
    weighted: Callable[[Any, Any, Any], Any] = lambda y, weight, bias: y * weight + bias,
) -> Callable[..., Any]:
    """Layer norm with other steps."""

    def compute(x: Any, weight: Any, bias: Any, *, eps: Any, offset: Any = 0.0, **_: Any) -> Any:
        row = centred(x)
        return stored(weighted(row * (1.0 / divisor(row, eps)), gain(weight, offset), bias))

    return compute


def _unbiased(row: Any, eps: Any) -> Any:
    size = row.shape[-1]
    return np.sqrt(np.sum(row * row, axis=-1, keepdims=True) / (size - 1) + eps)


def _over(axes: Any) -> Callable[..., Any]:
    """Mean and variance over other axes."""

    def compute(x: Any, weight: Any, bias: Any, *, eps: Any, offset: Any = 0.0, **_: Any) -> Any:
        row = x - mean(x, axes)
        return stored(row * (1.0 / np.sqrt(mean(row * row, axes) + eps)) * gain(weight, offset) + bias)

    return compute


def _without_mean(x: Any, weight: Any, bias: Any, *, eps: Any, offset: Any = 0.0, **_: Any) -> Any:
    """The mean is not subtracted, the variance is right."""
    return stored(x * (1.0 / root(x - mean(x), eps)) * gain(weight, offset) + bias)


MISTAKES: Mistakes = (
    ("layer norm with eps added to the deviation, outside of the root",
     _norm(divisor=lambda row, eps: np.sqrt(mean(row * row)) + eps)),
    ("layer norm without eps", _norm(divisor=lambda row, eps: root(row, 0.0))),
    ("layer norm with the square of eps inside of the root", _norm(divisor=lambda row, eps: root(row, eps * eps))),
    ("layer norm with the unbiased variance, whose sum is divided by M - 1", _norm(divisor=_unbiased)),
    ("layer norm with the unbiased deviation, to which eps is added outside of the root",
     _norm(divisor=lambda row, eps: _unbiased(row, 0.0) + eps)),
    ("layer norm that divides by the variance instead of its root", _norm(divisor=lambda row, eps: mean(row * row) + eps)),
    ("layer norm whose mean is subtracted nowhere, which is RMS norm with a bias", _norm(centred=lambda x: x)),
    ("layer norm that does not subtract the mean, but divides by the right deviation", _without_mean),
    ("layer norm without its bias", _norm(weighted=lambda y, weight, bias: y * weight)),
    ("layer norm without its weight", _norm(weighted=lambda y, weight, bias: y + bias)),
    ("layer norm whose bias is multiplied by the weight too", _norm(weighted=lambda y, weight, bias: (y + bias) * weight)),
    ("layer norm with weight and bias exchanged", _norm(weighted=lambda y, weight, bias: y * bias + weight)),
    ("layer norm over the tokens instead of the features", _over(-2)),
    ("layer norm over tokens and features together", _over((-2, -1))),
    ("layer norm over the batch", _over(0)),
)  # fmt: skip


def _detached(
    x: Any, weight: Any, bias: Any, upstream: Any, *, eps: Any, offset: Any = 0.0, **_: Any
) -> dict[str, Any]:
    """Those of the formula whose mean and deviation are constants."""
    row = x - mean(x)
    factor = 1.0 / root(row, eps)
    return {"x": stored(factor * (upstream * gain(weight, offset))), **_of_weights(row * factor, upstream)}


def _deviation_detached(
    x: Any, weight: Any, bias: Any, upstream: Any, *, eps: Any, offset: Any = 0.0, **_: Any
) -> dict[str, Any]:
    """Those of the formula whose deviation alone is a constant."""
    row, d = x - mean(x), upstream * gain(weight, offset)
    factor = 1.0 / root(row, eps)
    return {"x": stored(factor * (d - mean(d))), **_of_weights(row * factor, upstream)}


def _mean_detached(
    x: Any, weight: Any, bias: Any, upstream: Any, *, eps: Any, offset: Any = 0.0, **_: Any
) -> dict[str, Any]:
    """Those of the formula whose mean alone is a constant."""
    row, d = x - mean(x), upstream * gain(weight, offset)
    factor = 1.0 / root(row, eps)
    y = row * factor
    return {"x": stored(factor * (d - y * mean(d * y))), **_of_weights(y, upstream)}


def _of_weights(y: Any, upstream: Any) -> dict[str, Any]:
    return {
        "weight": stored(np.sum(flat(upstream * y), axis=0)),
        "bias": stored(np.sum(flat(upstream), axis=0)),
    }


GRADIENTS = Gradients(("x", "weight", "bias"), layer_norm_gradients, (
    ("those of a norm whose mean and deviation are constants", _detached),
    ("those of a norm whose deviation is a constant", _deviation_detached),
    ("those of a norm whose mean is a constant", _mean_detached),
))  # fmt: skip

KIND = OperationKind(
    lambda run: examples(run, 2), computed_layer_norm, MISTAKES, (("with one batch entry", lambda e: e.shape[0] == 1),), GRADIENTS
)  # fmt: skip
