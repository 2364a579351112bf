"""Correct first: what a layer must show before it is timed.

Its result is held against its definition, within the bound that the definition derives; and its matrix products have to be
exactly the multiply-adds that the formula counts, else the times would be another layer's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.contract import frameworks
from qkverify.rounding import Bounded, Precision
from qkverify.timing.complexity import counting
from qkverify.timing.complexity.layer import Layer, Perform

DTYPE = "float32"


def margin(
    layer: Layer, framework: str, device: str, *, perform: Perform | None = None, seed: int = 0
) -> float:
    """The largest |error| / bound over the layer's small sizes; above 1 the code is something else than the definition.

    `perform` is judged in place of the layer's own code. A result of another shape has an infinite margin.
    """
    arrays, largest = frameworks.get(framework), 0.0
    for number, sizes in enumerate(layer.check_at):
        inputs = layer.inputs(sizes, np.random.default_rng([seed, number]))
        exact = layer.definition(*(_bounded(x) for x in inputs), sizes)
        native = layer.laid_out(framework, (arrays.from_numpy(x, device) for x in inputs))
        got = arrays.to_numpy((perform or layer.performed_by(framework))(*native, sizes))
        largest = max(largest, _margin(got, exact))
    return largest


def miscounted(layer: Layer, framework: str, device: str) -> str:
    """Where the counted multiply-adds are not those of the formula, in words; empty where they are, at all small sizes."""
    for sizes in layer.check_at:
        drawn = layer.inputs(sizes, np.random.default_rng(0))
        native = layer.laid_out(framework, (frameworks.get(framework).from_numpy(x, device) for x in drawn))
        counted, theory = counting.multiply_adds(layer, framework, native, sizes), layer.multiply_adds(sizes)
        if counted != theory:
            return f"{counted:,} multiply-adds were counted at {sizes}, and {layer.formula} says {theory:,}"
    return ""


def _bounded(x: np.ndarray) -> Bounded:
    return Bounded(x.astype(np.float64), 0.0, Precision.plain(DTYPE))


def _margin(got: Any, exact: Bounded) -> float:
    if got.shape != exact.shape:
        return float("inf")
    distance = np.abs(got.astype(np.float64) - exact.value)
    distance = np.where(np.isnan(distance), np.inf, distance)
    return float((distance / exact.errors).max())
