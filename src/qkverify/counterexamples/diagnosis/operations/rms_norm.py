"""The mistakes of RMS norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Gradients, Mistakes, OperationKind
from qkverify.counterexamples.diagnosis.operations.norm_steps import examples, mean, root
from qkverify.reference.attention import stored
from qkverify.reference.norms_vjp import flat
from qkverify.runs.exact_norms import computed_rms_norm, gain, rms_norm_gradients


def _norm(
    divisor: Callable[[Any, Any], Any] = root,
    scaled: Callable[[Any], Any] = lambda x: x,
    weighted: Callable[[Any, Any], Any] = lambda y, weight: y * weight,
) -> Callable[..., Any]:
    """RMS norm with other steps."""

    def compute(x: Any, weight: Any, *, eps: Any, offset: Any = 0.0, **_: Any) -> Any:
        return stored(weighted(scaled(x) * (1.0 / divisor(x, eps)), gain(weight, offset)))

    return compute


def _over(axes: Any) -> Callable[[Any, Any], Any]:
    return lambda x, eps: np.sqrt(mean(x * x, axes) + eps)


MISTAKES: Mistakes = (
    ("RMS norm with eps added to the root, outside of it", _norm(lambda x, eps: np.sqrt(mean(x * x)) + eps)),
    ("RMS norm without eps", _norm(lambda x, eps: root(x, 0.0))),
    ("RMS norm with the square of eps inside of the root", _norm(lambda x, eps: root(x, eps * eps))),
    ("RMS norm that divides by the mean square instead of its root", _norm(lambda x, eps: mean(x * x) + eps)),
    ("RMS norm of the sum of the squares instead of their mean",
     _norm(lambda x, eps: np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps))),
    ("RMS norm of numbers less their mean, which is layer norm without a bias",
     _norm(lambda x, eps: root(x - mean(x), eps), lambda x: x - mean(x))),
    ("RMS norm that divides by the deviation, of numbers less their mean", _norm(lambda x, eps: root(x - mean(x), eps))),
    ("RMS norm without its weight", _norm(weighted=lambda y, weight: y)),
    ("RMS norm whose weight is added instead of multiplied", _norm(weighted=lambda y, weight: y + weight)),
    ("RMS norm that is multiplied by its weight twice", _norm(weighted=lambda y, weight: y * weight * weight)),
    ("RMS norm over the tokens instead of the features", _norm(_over(-2))),
    ("RMS norm over tokens and features together", _norm(_over((-2, -1)))),
)  # fmt: skip


def _detached(x: Any, weight: Any, upstream: Any, *, eps: Any, offset: Any = 0.0, **_: Any) -> dict[str, Any]:
    """Those of the formula whose root is a constant."""
    factor = 1.0 / root(x, eps)
    of_weight = np.sum(flat(upstream * (x * factor)), axis=0)
    return {"x": stored(factor * (upstream * gain(weight, offset))), "weight": stored(of_weight)}


GRADIENTS = Gradients(
    ("x", "weight"), rms_norm_gradients, (("those of a norm whose root is a constant", _detached),)
)

KIND = OperationKind(
    lambda run: examples(run, 1), computed_rms_norm, MISTAKES, (("with one batch entry", lambda e: e.shape[0] == 1),), GRADIENTS
)  # fmt: skip
