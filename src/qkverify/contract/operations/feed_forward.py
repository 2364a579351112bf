"""What is said of feed forward."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 120
OPERATION = Operation(
    "relu(x w_1 + b_1) w_2 + b_2",
    {"x": "(B,L,M)", "w_1": "(M,F)", "b_1": "(F,)", "w_2": "(F,M)", "b_2": "(M,)"}, "(B,L,M)",
)  # fmt: skip
