"""The calls of layer norm: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.runs import exact_norms
from qkverify.strategies.operation_spec import ROWS, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"x": new(*(s.B, s.L, s.M)[-s.axes :]), "weight": new(s.M), "bias": new(s.M)}, {"eps": s.eps}


SPEC = OperationSpec(
    {**ROWS, "M": (3, 1, 2, 8, 17), "eps": (1e-5, 1e-2, 1.0), "axes": (3, 2)},
    _drawn,
    lambda run, given, options: (exact_norms.normed(run, *given.values(), **options),),
)
