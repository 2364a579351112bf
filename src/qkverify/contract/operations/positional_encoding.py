"""What is said of positional encoding."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import ENCODINGS

ORDER = 40
OPERATION = Operation(
    "sines and cosines of p / 10000^(2i/dim)", {"length": "L", "dim": "M"}, "(L,M)",
    {"layout": '"interleaved" (sine and cosine are neighbours) or "concatenated"', "dtype, device": "of the result"},
    defaults=ENCODINGS,
    differentiable=False,
)  # fmt: skip
