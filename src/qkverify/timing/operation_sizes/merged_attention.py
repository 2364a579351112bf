"""The sizes at which merged attention is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("merged_attention", *at((128, 1024), {"B": 1, "H": 32, "E": 128, "empty": False}))
