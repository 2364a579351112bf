"""Arrays as a record holds them."""

from __future__ import annotations

import numpy as np


def rounded(array: np.ndarray, digits: int = 3) -> list[list[float | None]]:
    """A matrix as nested lists, NaN as None; 0.0 for -0.0, so that records of equal numbers are equal."""
    return [[None if np.isnan(x) else round(float(x), digits) + 0.0 for x in row] for row in array]


def numbered(count: int, first: int = 0) -> list[str]:
    """Labels "0", "1", ..."""
    return [str(first + i) for i in range(count)]
