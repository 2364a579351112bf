"""The sizes at which positional encoding is timed."""

from __future__ import annotations

from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("positional_encoding", *at((128, 1024), {"D": 512, "layout": "interleaved"}))
