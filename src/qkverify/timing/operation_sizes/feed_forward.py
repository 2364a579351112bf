"""The sizes at which feed forward is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("feed_forward", *at((64, 256), {"B": 1, "M": 512, "F": 2048}))
