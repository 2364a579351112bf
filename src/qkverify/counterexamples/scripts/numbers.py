"""Arrays and numbers as lines of a script that give them back exactly."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np

Array = np.ndarray
WIDTH = 110


def dtype_text(array: Array) -> str:
    """The dtype as NumPy spells it."""
    name = array.dtype.name
    return {"bool": "bool", "bfloat16": "ml_dtypes.bfloat16"}.get(name, f"np.{name}")


def made(name: str, array: Array, listed: str, full: str, dtype: str = "") -> list[str]:
    """A small or constant array: its numbers, or the one number that they all are."""
    dtype = dtype or array.dtype.name
    if array.size > 4 and constant(array):
        return [f"{name} = {full.format(array.shape, spelled(array.reshape(-1)[0], array.dtype), dtype)}"]
    opened, closed = listed.format("[\0]", dtype).split("\0")
    shape = f".reshape({', '.join(map(str, array.shape))})" if array.ndim != 1 else ""
    return filled(f"{name} = {opened}", (spelled(x, array.dtype) for x in array.reshape(-1)), closed + shape)


def filled(before: str, items: Any, after: str) -> list[str]:
    """`before` a, b, c `after`, on as many lines as it takes."""
    line = re.sub(r"(?<!,) ", "\0", before + ", ".join(items) + after)  # a line may end after a comma only
    lines = textwrap.wrap(
        line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in lines]


def spelled(x: Any, dtype: Any) -> str:
    """The shortest text of a number that gives this number back in its dtype."""
    if dtype.kind in "iub":
        return str(int(x))
    value = float(x)
    if not np.isfinite(value):
        return "np.nan" if np.isnan(value) else "np.inf" if value > 0 else "-np.inf"
    if value == 0:
        return "-0.0" if np.signbit(value) else "0"
    texts = (f"{value:.{digits}g}" for digits in range(1, 18))
    with np.errstate(over="ignore"):  # a shorter text of the largest number may be past it
        return next((text for text in texts if dtype.type(float(text)) == x), repr(value))


def constant(array: Array) -> bool:
    """Whether all numbers are the same, bit for bit."""
    return array.size > 0 and array.tobytes() == array.reshape(-1)[0].tobytes() * array.size


def nearly_constant(array: Array, few: int = 40) -> tuple[Any, list[int] | None]:
    """The most frequent number and the places of the others, if they are few."""
    flat = array.reshape(-1)
    bits = np.frombuffer(array.tobytes(), f"V{array.itemsize}")
    values, counts = np.unique(bits, return_counts=True)
    places = np.flatnonzero(bits != values[counts.argmax()])
    usual = flat[np.flatnonzero(bits == values[counts.argmax()])[0]]
    return usual, [int(i) for i in places] if len(places) <= few else None
