"""A plain matrix product, (A,B) times (B,C): what every other layer is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.rounding import Bounded
from qkverify.timing.complexity.layer import Layer, Sizes, Span, normal

ORDER = 10


def inputs(sizes: Sizes, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return normal(sizes["A"], sizes["B"], rng=rng), normal(sizes["B"], sizes["C"], rng=rng)


def definition(left: Bounded, right: Bounded, sizes: Sizes) -> Any:
    """Row by row: (A,B), (B,C) -> (A,C)."""
    return np.stack([(left[i][:, None] * right).sum(axis=0) for i in range(sizes["A"])])


def performed(left: Any, right: Any, sizes: Sizes) -> Any:
    """(A,B), (B,C) -> (A,C), in NumPy and torch alike."""
    return left @ right


LAYERS = (
    Layer(
        name="matrix product",
        formula="A B C",
        exponents={"A": 1, "B": 1, "C": 1},
        steps="1",
        path="",
        steps_at=lambda sizes: 1,
        path_at=lambda sizes: 0,
        inputs=inputs,
        definition=definition,
        numpy=performed,
        torch=performed,
        check_at=({"A": 3, "B": 5, "C": 2}, {"A": 1, "B": 17, "C": 9}),
        spans={
            "A": Span(16, {"B": 256, "C": 256}),
            "B": Span(16, {"A": 256, "C": 256}),
            "C": Span(16, {"A": 256, "B": 256}),
        },
        source="the schoolbook product: A C elements, each a sum of B products",
    ),
)
