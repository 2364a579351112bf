"""The sizes at which RMS norm is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("rms_norm", *at((128, 1024), {"B": 1, "M": 4096, "eps": 1e-5, "axes": 3}))
