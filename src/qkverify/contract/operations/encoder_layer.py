"""What is said of encoder layer."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import LAYER_DEFAULTS, LAYER_OPTIONS, LAYER_WEIGHTS

ORDER = 130
OPERATION = Operation(
    "self-attention and feed-forward, each added to its input and normalised",
    {"x": "(B,L,M)", "weights": LAYER_WEIGHTS}, "(B,L,M)",
    {**LAYER_OPTIONS, "key_lengths": "(B,): tokens that are no padding"}, defaults=LAYER_DEFAULTS,
)  # fmt: skip
