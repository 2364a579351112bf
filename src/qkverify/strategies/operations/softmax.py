"""The calls of softmax: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.reference.softmax import softmax
from qkverify.strategies.operation_spec import ROWS, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"scores": new(s.B, s.L, s.K)}, {}


SPEC = OperationSpec(
    {**ROWS, "K": (1, 2, 3, 5, 17, 65)},
    _drawn,
    lambda run, given, options: (+softmax(run.bounded(given["scores"])),),
)
