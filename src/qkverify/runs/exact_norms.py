"""What is exact of layer norm and RMS norm in one run.

The variance is that of x less its mean. Taken as E[x^2] - E[x]^2 it is the same number, with a larger rounding error where the
mean is large: `variance="one-pass"` changes the bound and nothing else. `offset` is added to the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qkverify.reference.norms import inverse_root, mean_square, moments, normalised
from qkverify.reference.norms import rms_norm as reference_rms_norm
from qkverify.reference.norms_vjp import normalised_vjp, rms_norm_vjp
from qkverify.rounding import Bounded, Precision
from qkverify.runs.run import Run

Array = np.ndarray


def statistics(x: Bounded, variance: str) -> tuple[Bounded, Bounded]:
    """x less its mean (..., M), and its variance (..., 1)."""
    given: Any = x
    centred, spread = moments(given)
    if variance == "one-pass":
        mean = np.sum(given, axis=-1, keepdims=True) / x.shape[-1]
        difference: Any = mean_square(given) - mean * mean
        spread = Bounded(spread.value, np.maximum(spread.errors, difference.errors), x.precision, spread.unit)
    return centred, spread


def gain(weight: Any, offset: Any) -> Any:
    """The weight, or one more than it."""
    return weight + offset if float(getattr(offset, "value", offset)) else weight


def computed_layer_norm(
    x: Bounded, weight: Bounded, bias: Bounded, *, eps: Any, variance: str = "two-pass", offset: Any = 0.0
) -> Bounded:
    """Layer norm of arrays with bounds: (..., M)."""
    given: tuple[Any, ...] = (*statistics(x, variance), gain(weight, offset), bias)
    result: Any = normalised(*given, eps=eps)
    return result  # type: ignore[no-any-return]


def computed_rms_norm(x: Bounded, weight: Bounded, *, eps: Any, offset: Any = 0.0) -> Bounded:
    """RMS norm of arrays with bounds: (..., M)."""
    given: Any = x
    result: Any = reference_rms_norm(given, gain(weight, offset), eps=eps)
    return result  # type: ignore[no-any-return]


def layer_norm_gradients(
    x: Bounded, weight: Bounded, bias: Bounded, upstream: Bounded, *, eps: Any, variance: str = "two-pass", offset: Any = 0.0
) -> Mapping[str, Bounded]:  # fmt: skip
    """Those of x, weight and bias."""
    centred, spread = statistics(x, variance)
    given: tuple[Any, ...] = (centred, spread, gain(weight, offset), upstream)
    exact: Any = normalised_vjp(*given, eps=eps)
    return {
        "x": _unless_cube_overflows(exact["x"], spread, eps),
        "weight": exact["gain"],
        "bias": exact["shift"],
    }


def rms_norm_gradients(
    x: Bounded, weight: Bounded, upstream: Bounded, *, eps: Any, offset: Any = 0.0
) -> Mapping[str, Bounded]:
    """Those of x and weight."""
    given: tuple[Any, ...] = (x, gain(weight, offset), upstream)
    exact: Any = rms_norm_vjp(*given, eps=eps)
    squares: Any = mean_square(given[0])
    return {"x": _unless_cube_overflows(exact["x"], squares, eps), "weight": exact["gain"]}


def _unless_cube_overflows(gradient: Bounded, variance: Bounded, eps: Any) -> Bounded:
    """The gradient of x. Op by op, the derivative of an inverse root is its cube, stored: where that overflows, in float16 for a
    deviation below 0.025, nothing is known of the gradient."""
    precision = gradient.precision
    if not precision.op_by_op:
        return gradient
    given: Any = variance
    root: Any = inverse_root(given, eps)
    cube = (np.abs(root.value) + root.errors) ** 3 * (1 + 4 * precision.elementwise.unit)
    errors = np.where(cube > precision.elementwise.huge, np.inf, gradient.errors)
    return Bounded(gradient.value, errors, precision, gradient.unit)


COMPUTED: Mapping[str, Callable[..., Bounded]] = {
    "layer_norm": computed_layer_norm,
    "rms_norm": computed_rms_norm,
}
GRADIENTS: Mapping[str, Callable[..., Mapping[str, Bounded]]] = {
    "layer_norm": layer_norm_gradients,
    "rms_norm": rms_norm_gradients,
}


def normed(run: Run, *arrays: Array, eps: float, **choices: Any) -> Bounded:
    """The norm that is the operation of the run, of x and its weights: (..., M)."""
    given = [run.bounded(x) for x in arrays]
    return COMPUTED[run.implementation.operation](*given, eps=_rounded(eps, run.precision), **choices)


def gradients(run: Run, upstream: Array, *arrays: Array, eps: float, **choices: Any) -> Mapping[str, Bounded]:
    """Its gradients by argument, under the precision of the run's gradients."""
    precision = run.gradient_precision
    given = [run.bounded(x, precision) for x in (*arrays, upstream)]
    return GRADIENTS[run.implementation.operation](*given, eps=_rounded(eps, precision), **choices)


def _rounded(eps: float, precision: Precision) -> Bounded:
    """As a number that is no array is rounded to the working precision."""
    return Bounded(eps, np.asarray(eps * precision.accumulate.unit), precision)
