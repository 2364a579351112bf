"""What is said of RMS norm."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import NORM_EPS, NORM_OFFSET, NORM_OPTIONS, NORM_SPELLINGS

ORDER = 170
OPERATION = Operation(
    "x / sqrt(mean of x^2 + eps) * weight over the last axis", {"x": "(..., M)", "weight": "(M,)"}, "(..., M)", NORM_OPTIONS,
    (NORM_OFFSET,), {"eps": NORM_EPS, "offset": (0.0, 1.0)}, named=("rmsnorm",), spellings=NORM_SPELLINGS,
)  # fmt: skip
