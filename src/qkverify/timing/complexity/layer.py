"""A type of layer as data: what theory says of its cost, a definition to be held against, and the code that is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

Sizes = Mapping[
    str, int
]  # n positions, d features, k width of a kernel, r neighbours; A, B, C of a plain product
Perform = Callable[..., Any]

TABLE_1 = "Attention Is All You Need (arXiv:1706.03762), table 1 and section 4"


@dataclass(frozen=True)
class Span:
    """How one variable is varied: from `start` on, in multiples of `multiple`, all others as in `fixed`."""

    start: int
    fixed: dict[str, int]
    multiple: int = 16  # libraries have blocks of so many, and are slow beside them


@dataclass(frozen=True, eq=False)  # a layer is itself and no other: it may be a key
class Layer:
    """One type of layer.

    formula      the leading term as the source writes it, e.g. "n² d"; `exponents` says the same as data
    factor       multiply-adds of the matrix products, over the formula: self-attention has two products of n² d
    steps, path  sequential operations and longest path as the source writes them, of sizes; "" where it has no such word
    steps_at     what they are for this code exactly, counted in matrix products that wait for one another
    path_at      the fewest matrix products between the first input and the last output, over as many layers as that takes
    inputs       draws float32 arrays of the sizes; the first `sequences` of them are the sequence that a layer hands on
    definition   the layer position by position on Bounded arrays: the value, and the bound that `numpy` and `torch` are held to
    numpy        the layer that is timed, `numpy(*inputs, sizes)`; `torch` likewise, and imports torch itself
    for_torch    inputs in the layout that the torch code takes: what a model does once, and no call pays for
    deeper       the sizes that the layer at a depth (from 0) of a stack has, where they differ
    check_at     small sizes for the comparison with the definition
    spans        what is timed: how each variable grows
    """

    name: str
    formula: str
    exponents: Mapping[str, int]
    steps: str
    path: str
    steps_at: Callable[[Sizes], int]
    path_at: Callable[[Sizes], int]
    inputs: Callable[[Sizes, np.random.Generator], tuple[np.ndarray, ...]]
    definition: Perform
    numpy: Perform
    torch: Perform
    check_at: tuple[dict[str, int], ...]
    spans: Mapping[str, Span]
    factor: int = 1
    sequences: int = 1
    for_torch: Callable[..., tuple[Any, ...]] = field(default=lambda *inputs: inputs)
    deeper: Callable[[Sizes, int], Sizes] = field(default=lambda sizes, depth: sizes)
    source: str = TABLE_1

    def multiply_adds(self, sizes: Sizes) -> int:
        """What theory counts at these sizes, with its constant factor."""
        each: list[int] = [sizes[name] ** power for name, power in self.exponents.items()]
        return self.factor * prod(each)

    def performed_by(self, framework: str) -> Perform:
        """The layer as "numpy" or "torch" performs it."""
        return {"numpy": self.numpy, "torch": self.torch}[framework]

    def laid_out(self, framework: str, native: Iterable[Any]) -> tuple[Any, ...]:
        """A framework's arrays as its code takes them."""
        return self.for_torch(*native) if framework == "torch" else tuple(native)


def normal(*shape: int, rng: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    """Normal numbers in float32."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
