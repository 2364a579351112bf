"""The calls of embedding: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.runs import exact_positions
from qkverify.strategies.operation_spec import EVEN, ROWS, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    padding = {"padding": new.integers(0, s.L, s.B)} if s.padded else {}
    given = {"tokens": new.integers(0, s.V, s.B, s.L), "table": new(s.V, s.D)}
    return given, {"layout": s.layout, **padding}


SPEC = OperationSpec(
    {**ROWS, "D": EVEN, "V": (2, 5, 11), "layout": ("interleaved", "concatenated"), "padded": (False, True)},
    _drawn,
    lambda run, given, options: (exact_positions.embedding(run, **given, **options),),
)
