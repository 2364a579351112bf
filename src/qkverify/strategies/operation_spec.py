"""What the engine knows of the calls of an operation: where sizes, arguments and what is exact come from.

`strategies/operations/` has a file for each operation; a law that speaks of calls, and not of what is computed, is written once
over all of them (`properties/test_calls.py`). Sizes are small: whatever is kept between calls is kept for small arrays too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from qkverify.rounding import Bounded
from qkverify.runs.run import Run

Array = np.ndarray
Given = dict[str, Any]  # arguments or keywords by name: arrays, numbers, words, mappings of arrays

BATCH, LENGTHS, HEADS, EVEN = (1, 2, 3), (1, 2, 3, 5, 9), (1, 2, 3), (2, 4, 6, 16)
ROWS: Mapping[str, Sequence[Any]] = {"B": BATCH, "L": LENGTHS}
PAIRS = ("interleaved", "half")


class Source:
    """Where the numbers of one call come from. `turn` counts the calls of an example: same sizes, other numbers."""

    def __init__(self, dtype: Any, sizes: SimpleNamespace, turn: int) -> None:
        self.dtype, self.turn, self._whole = dtype, turn, sizes.fill == "whole"
        self._rng = np.random.default_rng([sizes.seed, turn])
        self._steady = np.random.default_rng(sizes.seed)

    def __call__(self, *shape: int, size: float = 1.0) -> Array:
        """Small whole numbers, or normal ones of this size."""
        whole = self._rng.integers(-2, 3, shape)
        values: Array = (whole if self._whole else self._rng.standard_normal(shape) * size).astype(self.dtype)
        return values

    def matrix(self, rows: int, columns: int) -> Array:
        """Weights that keep the size of what they are multiplied with."""
        return self(rows, columns, size=rows**-0.5)

    def integers(self, first: int, end: int, *shape: int, dtype: Any = np.int64) -> Array:
        return self._rng.integers(first, end, shape).astype(dtype)

    def steady(self, first: int, end: int, *shape: int) -> Array:
        """Integers that are the same in every turn."""
        return self._steady.integers(first, end, shape).astype(np.int32)


@dataclass(frozen=True)
class OperationSpec:
    """An operation: `sizes` and switches with their candidates, the simplest first; `draw` makes arguments and keywords of them.

    `exact(run, arguments, keywords)` is every part of the result. `written` are arguments that the operation is there to write.
    `parts` are the names of its results where it has several. `reveal(arrays, number)` are arrays that show what it means by
    what it is not told.
    """

    sizes: Mapping[str, Sequence[Any]]
    draw: Callable[[SimpleNamespace, Source], tuple[Given, Given]]
    exact: Callable[[Run, Given, Given], tuple[Bounded, ...]]
    written: tuple[str, ...] = ()
    has_arrays: bool = True
    parts: tuple[str, ...] = ()
    reveal: Callable[[Mapping[str, Array], int], Mapping[str, Array]] | None = None

    @property
    def takes_integers(self) -> bool:
        """Whether an array of integers is among what is drawn, where every switch stands at its last candidate."""
        sizes = SimpleNamespace(**{name: pool[-1] for name, pool in self.sizes.items()}, fill="whole", seed=0)
        drawn = self.draw(sizes, Source(np.dtype("float32"), sizes, 0))
        return any(
            isinstance(x, np.ndarray) and x.dtype.kind in "iu" for given in drawn for x in given.values()
        )

    @property
    def differentiable(self) -> bool:
        """Whether gradients are asked of it: not of what takes no arrays, nor of what writes to them."""
        return self.has_arrays and not self.written


def each_leaf(values: Mapping[str, Any], change: Callable[[str, Any], Any], prefix: str = "") -> Given:
    """The same nesting with every leaf changed, which is called by its path."""
    return {
        name: each_leaf(x, change, f"{prefix}{name}.") if isinstance(x, Mapping) else change(prefix + name, x)
        for name, x in values.items()
    }


def bounded(run: Run, values: Mapping[str, Any]) -> Given:
    """Arrays of the dtype under test as the reference takes them; integers and numbers stay as they are."""
    return each_leaf(
        values, lambda _, x: run.bounded(x) if isinstance(x, np.ndarray) and x.dtype.kind not in "iu" else x
    )


def rounded(run: Run, number: float) -> Bounded:
    """A number that is no array: an implementation rounds it to its working precision."""
    return Bounded(number, np.asarray(abs(number) * run.precision.accumulate.unit), run.precision)
