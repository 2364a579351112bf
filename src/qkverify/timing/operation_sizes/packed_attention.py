"""The sizes at which packed attention is timed."""

from __future__ import annotations

from qkverify.timing.model_sizes import GROUPED
from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("packed_attention", *at((32, 128), {**GROUPED, "B": 4, "causal": True}, "LK"))
