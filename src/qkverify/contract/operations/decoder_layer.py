"""What is said of decoder layer."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import LAYER_DEFAULTS, LAYER_OPTIONS, LAYER_WEIGHTS

ORDER = 140
OPERATION = Operation(
    "causal self-attention, attention to the memory, feed-forward",
    {"x": "(B,L,M)", "memory": "(B,K,M)",
     "weights": f"{LAYER_WEIGHTS}, and cross_w_q, cross_w_k, cross_w_v, cross_w_o (M,M), gain_3, shift_3 (M,)"}, "(B,L,M)",
    {**LAYER_OPTIONS, "memory_lengths": "(B,): tokens of the memory that are no padding"}, defaults=LAYER_DEFAULTS,
)  # fmt: skip
