"""What is said of rotary pair."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import ROTATIONS

ORDER = 60
OPERATION = Operation(
    "query and key turned by the positions of each entry",
    {"query": "(B,H,L,D)", "key": "(B,G,L,D)", "positions": "(B,L)"}, "the two, turned",
    {"layout": "as for rotary"}, ("a vjp of its own takes an upstream gradient for each of the two",),
    ROTATIONS,
)  # fmt: skip
