"""The sizes at which multi head attention is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("multi_head_attention", *at((64, 256), {"B": 1, "H": 8, "D": 64, "causal": False}))
