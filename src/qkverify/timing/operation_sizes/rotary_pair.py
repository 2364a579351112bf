"""The sizes at which rotary pair is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("rotary_pair", *at((64, 512), {"B": 1, "G": 8, "H": 4, "D": 128, "layout": "half"}))
