"""Problems in which the gradient of a query has two large parts and many small ones of the same sign.

A loop over tiles of keys that casts its operands to float32 tile by tile has a gradient which autograd adds tile by tile, in half
precision: the small parts are rounded away, one tile after the other, and their sum is many unit roundoffs. Random numbers hardly
show it. For each length of tiles that is usual, the parts of a tile are just too small to count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import FORMATS
from qkverify.runs.run import Run

TILES = (16, 32, 64)
QUERIES, KEYS = 5, 257
Array = np.ndarray


def problems(run: Run, size: int) -> list[Problem]:
    """Of one head of a size. Weights are equal, and the gradient by a score times its key is the part of that key."""
    fitting = []
    for tile in TILES:
        part = (
            0.4 * 2 * FORMATS[run.dtype].unit / tile
        )  # of one key; 2 u is the distance of numbers just above 1
        columns = {"query": np.zeros(QUERIES), "key": _large_at_ends(-part * KEYS), "value": _large_at_ends(0.0),
                   "upstream": np.ones(QUERIES)}  # fmt: skip
        problem = _of_first_feature(run, size, columns)
        fitting += [problem] if run.implementation.accepts(problem.sizes) is None else []
    return fitting


def _large_at_ends(rest: float) -> Array:
    """One at either end, for autograd goes backward, and the same small number in between."""
    return np.where(np.arange(KEYS) % (KEYS - 1) == 0, 1.0, rest)


def _of_first_feature(run: Run, size: int, columns: dict[str, Array]) -> Problem:
    """Arrays of one head whose first feature is given, and whose others are zero."""
    arguments: dict[str, Any] = dict.fromkeys(run.implementation.always, True)
    for name, column in columns.items():
        array = np.zeros((1, 1, len(column), size))
        array[0, 0, :, 0] = column
        arguments[name] = array.astype(run.numpy_dtype)
    return Problem(**arguments)
