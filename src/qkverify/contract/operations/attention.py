"""What is said of attention."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 10
OPERATION = Operation(
    "softmax(Q K^T * scale) V for each head, with the options that it offers",
    {"query": "(B,H,Q,D)", "key": "(B,G,K,D)", "value": "(B,G,K,E)"}, "(B,H,Q,E)",
    rules=("sizes that do not fit one another raise an error: nothing is read past an end, nothing broadcast by chance",
           "gradients are those of the output, and of the log-sum-exp too unless lse_gradient=False is declared"),
)  # fmt: skip
