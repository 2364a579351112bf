"""The calls of rotary pair: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.rounding import Bounded
from qkverify.runs import exact_positions
from qkverify.runs.run import Run
from qkverify.strategies.operation_spec import EVEN, PAIRS, ROWS, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    query, key = new(s.B, s.H * s.G, s.L, s.D), new(s.B, s.G, s.L, s.D)
    return {"query": query, "key": key, "positions": new.integers(0, 99, s.B, s.L)}, {"layout": s.layout}


def _exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    at = given["positions"][:, None]
    return tuple(exact_positions.rotary(run, given[x], at, **options) for x in ("query", "key"))


SPEC = OperationSpec(
    {**ROWS, "G": (1, 2), "H": (1, 2), "D": EVEN, "layout": PAIRS}, _drawn, _exact, parts=("query", "key")
)
