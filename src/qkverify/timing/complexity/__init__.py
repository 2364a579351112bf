"""The cost of types of layers, measured beside theory: table 1 of "Attention Is All You Need" (arXiv:1706.03762).

    for record in measure(budget_seconds=20): writer.append(record)

Rooms: `layer` says what a type of layer is, `layers/` holds one file for each (a new one is a new file there), `checking` holds
it against its definition, `counting` counts its operations, `tracing` follows chains of products through it, `measuring` takes
the times, `fitting` turns them into exponents, `benchmark_rows` shows them in pytest-benchmark's tables.

What is measured is the code in `layers/`, in NumPy and, where it is installed, in torch: not the best that can be done, but the
operations that the formulas count, one after another, on one thread. How a library divides work among cores changes with the
size, and would bend what is looked for.
"""

from qkverify.timing.complexity.layer import Layer, Span
from qkverify.timing.complexity.layers import all_layers, layer
from qkverify.timing.complexity.measuring import (
    FrameworkOnDevice,
    LayerSeries,
    measure,
    places,
    series,
    travel,
)

__all__ = [
    "FrameworkOnDevice",
    "Layer",
    "LayerSeries",
    "Span",
    "all_layers",
    "layer",
    "measure",
    "places",
    "series",
    "travel",
]
