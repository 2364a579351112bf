"""The calls of SwiGLU: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.reference.gated import swiglu
from qkverify.strategies.operation_spec import ROWS, Given, OperationSpec, Source, bounded


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    gate, up, down = new.matrix(s.M, s.F), new.matrix(s.M, s.F), new.matrix(s.F, s.M)
    return {"x": new(s.B, s.L, s.M), "w_gate": gate, "w_up": up, "w_down": down}, {}


SPEC = OperationSpec(
    {**ROWS, "M": (1, 2, 3, 8), "F": (1, 2, 5, 16)},
    _drawn,
    lambda run, given, options: (swiglu(*bounded(run, given).values()),),
)
