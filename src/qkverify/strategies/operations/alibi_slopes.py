"""The calls of alibi slopes: sizes, arguments, and what is exact."""

from __future__ import annotations

from qkverify.runs import exact_positions
from qkverify.strategies.operation_spec import OperationSpec

SPEC = OperationSpec(
    {"H": (1, 2, 3, 8, 12)},
    lambda s, new: ({"heads": s.H}, {}),
    lambda run, given, options: (exact_positions.slopes(run, **given),),
    has_arrays=False,
)
