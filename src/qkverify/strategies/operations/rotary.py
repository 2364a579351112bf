"""The calls of rotary: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.runs import exact_positions
from qkverify.strategies.operation_spec import EVEN, HEADS, PAIRS, ROWS, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"x": new(s.B, s.H, s.L, s.D), "positions": new.integers(0, 99, s.L)}, {"layout": s.layout}


SPEC = OperationSpec(
    {**ROWS, "H": HEADS, "D": EVEN, "layout": PAIRS},
    _drawn,
    lambda run, given, options: (exact_positions.rotary(run, **given, **options),),
)
