"""What is said of SwiGLU."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 125
OPERATION = Operation(
    "(silu(x w_gate) * (x w_up)) w_down, the gated feed-forward network with silu(x) = x / (1 + exp(-x))",
    {"x": "(B,L,M)", "w_gate": "(M,F)", "w_up": "(M,F)", "w_down": "(F,M)"}, "(B,L,M)",
)  # fmt: skip
