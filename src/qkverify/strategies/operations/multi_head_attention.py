"""The calls of multi head attention: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.reference.multi_head import multi_head_attention
from qkverify.strategies.operation_spec import HEADS, ROWS, Given, OperationSpec, Source, bounded


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    width = s.H * s.D
    weights = {name: new.matrix(width, width) for name in ("w_q", "w_k", "w_v", "w_o")}
    return {"x": new(s.B, s.L, width), **weights}, {"heads": s.H, "causal": s.causal}


SPEC = OperationSpec(
    {**ROWS, "H": HEADS, "D": (1, 2, 3, 8), "causal": (False, True)},
    _drawn,
    lambda run, given, options: (
        multi_head_attention(*bounded(run, given).values(), causal_alignment="bottom-right", **options),
    ),
)
