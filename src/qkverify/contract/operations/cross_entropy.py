"""What is said of cross entropy."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 150
OPERATION = Operation(
    "the loss of each token; 1 - smoothing of it for the target, the rest spread over all classes",
    {"scores": "(N,C)", "targets": "(N,)"}, "(N,)", {"smoothing": "0 if it is not given"},
)  # fmt: skip
