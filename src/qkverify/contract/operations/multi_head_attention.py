"""What is said of multi head attention."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 30
OPERATION = Operation(
    "projections, attention in each head, concatenation, projection",
    {"x": "(B,L,M)", "w_q": "(M,H*D)", "w_k": "(M,H*D)", "w_v": "(M,H*D)", "w_o": "(H*D,M)"}, "(B,L,M)",
    {"heads": "required", "causal": "True or False"},
)  # fmt: skip
