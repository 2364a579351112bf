"""What is said of layer norm."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import NORM_EPS, NORM_OFFSET, NORM_OPTIONS, NORM_SPELLINGS

ORDER = 160
OPERATION = Operation(
    "(x - mean) / sqrt(variance + eps) * weight + bias over the last axis",
    {"x": "(..., M)", "weight": "(M,)", "bias": "(M,)"}, "(..., M)", NORM_OPTIONS,
    (NORM_OFFSET, "a variance taken as E[x^2] - E[x]^2 (one-pass) is a choice that is found out, said and held to: it loses the "
     "digits that a large mean takes"),
    {"variance": ("two-pass", "one-pass"), "eps": NORM_EPS, "offset": (0.0, 1.0)},
    named=("layernorm",), spellings=NORM_SPELLINGS,
)  # fmt: skip
