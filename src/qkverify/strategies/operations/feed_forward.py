"""The calls of feed forward: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.reference.layers import feed_forward
from qkverify.strategies.operation_spec import ROWS, Given, OperationSpec, Source, bounded


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    first, second = new.matrix(s.M, s.F), new.matrix(s.F, s.M)
    return {"x": new(s.B, s.L, s.M), "w_1": first, "b_1": new(s.F), "w_2": second, "b_2": new(s.M)}, {}


SPEC = OperationSpec(
    {**ROWS, "M": (1, 2, 3, 8), "F": (1, 2, 5, 16)},
    _drawn,
    lambda run, given, options: (feed_forward(*bounded(run, given).values()),),
)
