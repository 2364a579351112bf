"""What is said of alibi slopes."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 80
OPERATION = Operation(
    "the slopes of ALiBi, any number of heads", {"heads": "H"}, "(H,)", differentiable=False
)  # fmt: skip
