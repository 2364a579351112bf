"""The sizes at which alibi slopes is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import short_and_long

CASES = short_and_long("alibi_slopes", {"H": 8}, {"H": 112})
