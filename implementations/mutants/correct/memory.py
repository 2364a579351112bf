"""Reading an array by the wrong strides, as a kernel does that assumes a layout, inside its own memory."""

from __future__ import annotations

import numpy as np


def read(array: np.ndarray, strides: tuple[int, ...], *, index: type = np.int64) -> np.ndarray:
    """What lies at the places that `strides` (in elements) lead to from `array`'s first element.

    `index` is the integer type in which row * stride is computed. Outside of the buffer that holds the array,
    where a kernel would read foreign memory, everything is 7.
    """
    located = buffer(array)
    if located is None or not array.size:
        return array
    memory, first = located
    places = np.full(array.shape, first, np.int64)
    for axis, stride in enumerate(strides):
        steps = (np.arange(array.shape[axis]) * stride).astype(index).astype(np.int64)
        places += steps.reshape([-1 if other == axis else 1 for other in range(array.ndim)])
    outside = (places < 0) | (places >= memory.size)
    return np.where(outside, 7, memory[np.where(outside, 0, places)]).astype(array.dtype)


def strides_of(array: np.ndarray) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(stride // array.itemsize for stride in array.strides)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of an array of this shape in the order of its axes."""
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def buffer(array: np.ndarray) -> tuple[np.ndarray, int] | None:
    """The elements of the memory that `array` is a view of, and which is its first; None if unknown."""
    owner = whole = array
    while (owner := getattr(owner, "base", None)) is not None:
        if isinstance(owner, np.ndarray) and owner.dtype == array.dtype and _flat(owner) is not None:
            whole = owner
    flat = _flat(whole)
    return None if flat is None else (flat, (array.ctypes.data - flat.ctypes.data) // array.itemsize)


def _flat(array: np.ndarray) -> np.ndarray | None:
    """All elements in memory order without a copy, or None where that takes one."""
    order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else None
    return None if order is None else array.reshape(-1, order=order)
