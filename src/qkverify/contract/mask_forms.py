"""How a function takes a mask that is not the contract's bool (True = may attend) of all axes (B,H,Q,K).

A form is written "KIND:AXES", such as "hidden:BK". `KINDS` says what a value means; of the axes B, H, Q, K the named ones are
there, and a 1 stands for an axis of length one. "4D" is all of them, always written, each whole or of length one. A mask that
differs along an axis that the form leaves out is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from qkverify.errors import UnsupportedCase, UsageError

PLAIN = "visible:BHQK"  # the contract's
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "visible": "True = may attend",
        "hidden": "True = hidden",
        "int": "integers, 1 = may attend",
        "int-hidden": "integers, 1 = hidden",
        "float": "floats, 1 = may attend",
        "float-hidden": "floats, 1 = hidden",
        "additive": "added to the scores: 0 = may attend, -inf = hidden",
    }
)
OF_BOOLS = ("visible", "hidden")
FULL = "BHQK"
FOUR = "4D"  # of a function that reads a mask of two axes as (B,K), or one of three as (B,Q,K)
FEWER = ("BQK", "QK", "BK")  # axes of a mask that is not given with all four
ONES = ("B1QK", "11QK", "B11K")  # four axes, some of length one


def checked(form: str) -> str:
    """A form as it is written, with the axes BHQK if it names none. Raises UsageError."""
    kind, _, axes = form.partition(":")
    if kind not in KINDS:
        raise UsageError.unknown("kind of mask", kind, KINDS)
    every = (FULL, FOUR, *FEWER, *ONES)
    if axes and axes not in every:
        raise UsageError.unknown("axes of a mask", axes, every)
    form = f"{kind}:{axes or FULL}"
    return "" if form == PLAIN else form


def words(form: str) -> str:
    """ "(B,K), True = hidden" """
    kind, axes = form.split(":")
    shown = "always of four axes" if axes == FOUR else f"({','.join(axes)})"
    return f"{shown}, {KINDS[kind]}"


def axes_of(form: str) -> str:
    """The axes along which a mask of this form may differ: "BK"."""
    axes = form.partition(":")[2].replace("1", "")
    return FULL if axes in ("", FOUR) else axes


def takes_all_axes(form: str) -> bool:
    return form.endswith((f":{FULL}", f":{FOUR}"))


def as_taken(mask: np.ndarray, form: str, sizes: Mapping[str, int], dtype: Any) -> np.ndarray:
    """A mask that broadcasts to (B,H,Q,K) and is True where a query may attend, as the function takes it.

    An additive one and floats are of `dtype`. Raises UnsupportedCase if the form has no place for it.
    """
    return _valued(reduced(mask, form, sizes), form.partition(":")[0], dtype)


def reduced(array: np.ndarray, form: str, sizes: Mapping[str, int]) -> np.ndarray:
    """A mask or bias over the axes of a form alone. Raises UnsupportedCase if it differs along others."""
    axes = form.partition(":")[2]
    if axes == FULL:
        return array
    if axes == FOUR:
        return array.reshape((1,) * (len(FULL) - array.ndim) + array.shape)
    whole = np.broadcast_to(array, tuple(sizes[letter] for letter in FULL))
    first = tuple(slice(None) if letter in axes else slice(1) for letter in FULL)
    cut = (
        whole[first]
        if whole.size
        else np.ones(
            [n if letter in axes else 1 for n, letter in zip(whole.shape, FULL, strict=True)], array.dtype
        )
    )
    if not np.array_equal(np.broadcast_to(cut, whole.shape), whole, equal_nan=whole.dtype.kind == "f"):
        raise UnsupportedCase(
            f"its mask is {words(form).partition(')')[0]}): it cannot differ along other axes"
        )
    left = [n for n, letter in zip(cut.shape, FULL, strict=True) if letter in axes or len(axes) == len(FULL)]
    return np.ascontiguousarray(cut.reshape(left))


def _valued(mask: np.ndarray, kind: str, dtype: Any) -> np.ndarray:
    if kind == "additive":
        return np.where(mask, 0.0, -np.inf).astype(dtype)
    told = ~mask if kind.endswith("hidden") else mask
    if kind.startswith("int"):
        return told.astype(np.int64)
    return told.astype(dtype) if kind.startswith("float") else told
