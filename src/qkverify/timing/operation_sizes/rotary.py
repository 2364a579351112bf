"""The sizes at which rotary is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("rotary", *at((128, 1024), {"B": 1, "H": 8, "D": 128, "layout": "half"}))
