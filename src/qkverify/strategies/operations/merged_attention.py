"""The calls of merged attention: sizes, arguments, and what is exact."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np

from qkverify.rounding import Bounded
from qkverify.runs import exact_merge
from qkverify.runs.run import Run
from qkverify.strategies.operation_spec import HEADS, ROWS, Array, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """Some rows of either side have seen no key, if so."""
    wide = np.float64 if np.dtype(new.dtype).itemsize == 8 else np.float32
    given: Given = {}
    for side in ("a", "b"):
        lse = new(s.B, s.H, s.L, size=3.0).astype(wide)
        empty = (new.integers(0, 3, s.B, s.H, s.L) == 0) & s.empty
        output = new(s.B, s.H, s.L, s.E)
        given |= {
            f"o_{side}": np.where(empty[..., None], output.dtype.type(0), output),
            f"lse_{side}": np.where(empty, wide(-np.inf), lse),
        }
    return given, {}


def _exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    return tuple(exact_merge.merged(run, *given.values(), **options).values())


def _revealing(arrays: Mapping[str, Array], number: int) -> Mapping[str, Array]:
    """A small output with a large share, and log-sum-exps that are large or far from one another."""
    a, b = ("a", "b") if number % 2 else ("b", "a")
    apart = (
        {f"lse_{a}": np.float32(300), f"lse_{b}": np.float32(290)}
        if number < 2
        else {f"lse_{b}": np.float32(-40)}
    )
    moved = {name: arrays[name] + shift.astype(arrays[name].dtype) for name, shift in apart.items()}
    factor = arrays[f"o_{b}"].dtype.type(1024)
    return {**moved, f"o_{b}": arrays[f"o_{b}"] * factor}


SPEC = OperationSpec(
    {**ROWS, "H": HEADS, "E": (1, 2, 3, 8), "empty": (False, True)}, _drawn, _exact, parts=exact_merge.PARTS, reveal=_revealing
)  # fmt: skip
