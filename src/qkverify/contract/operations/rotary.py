"""What is said of rotary."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import ROTATIONS

ORDER = 50
OPERATION = Operation(
    "each pair of x turned by position / 10000^(2i/D)", {"x": "(B,H,L,D)", "positions": "(L,)"}, "(B,H,L,D)",
    {"layout": '"interleaved" or "half": which elements are a pair'}, defaults=ROTATIONS,
)  # fmt: skip
