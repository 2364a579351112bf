"""The sizes at which embedding is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long(
    "embedding", *at((128, 1024), {"B": 1, "D": 512, "V": 8000, "layout": "interleaved", "padded": False})
)
