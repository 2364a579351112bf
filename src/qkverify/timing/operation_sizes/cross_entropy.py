"""The sizes at which cross entropy is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("cross_entropy", *at((32, 128), {"K": 37000, "smoothing": 0.1}))
