"""Changes of an array that its dtype does not round: a law that rounds its own inputs accuses right code."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume

Array = np.ndarray


def shifted(array: Array, constant: float) -> tuple[Array, Array]:
    """Two arrays of one dtype, whose elements all differ by the same number exactly: `constant` as the dtype has it.

    The first is as near to `array` as it can be; where the sum cannot be kept, its element is zero. In float64 the constant must
    be one of few binary digits, such as 40 or 0.5: nothing finer is at hand to see what was rounded.
    """
    dtype = array.dtype
    step = float(dtype.type(constant))
    moved = (array.astype(np.float64) + step).astype(dtype)
    back = (moved.astype(np.float64) - step).astype(dtype)
    kept = back.astype(np.float64) + step == moved.astype(np.float64)
    return np.where(kept, back, dtype.type(0)), np.where(kept, moved, dtype.type(step))


def scaled(array: Array, factor: float) -> Array:
    """The array times a factor. Rejects the example if a product does not fit into the dtype, at either end of its range."""
    wide = array.astype(np.float64) * factor
    with np.errstate(over="ignore"):
        product: Any = wide.astype(array.dtype)
    assume((product.astype(np.float64) == wide).all())
    return np.asarray(product)
