"""The sizes at which SwiGLU is timed: those of TinyLlama 1.1B (arXiv:2401.02385, table 1)."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("swiglu", *at((16, 64), {"B": 1, "M": 2048, "F": 5632}))
