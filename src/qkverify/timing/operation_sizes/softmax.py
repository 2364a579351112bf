"""The sizes at which softmax is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("softmax", *at((128, 512), {"B": 8}, "LK"))
