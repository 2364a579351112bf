"""The calls of positional encoding: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.runs import exact_positions
from qkverify.strategies.operation_spec import EVEN, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"length": s.L, "dim": s.D}, {"layout": s.layout, "dtype": new.dtype.name}


SPEC = OperationSpec(
    {"L": (1, 2, 5, 33), "D": EVEN, "layout": ("interleaved", "concatenated")},
    _drawn,
    lambda run, given, options: (
        exact_positions.positional_encoding(run, **given, layout=options["layout"]),
    ),
    has_arrays=False,
)
