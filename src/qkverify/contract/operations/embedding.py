"""What is said of embedding."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import ENCODINGS

ORDER = 70
OPERATION = Operation(
    "sqrt(M) table[token] + the encoding of its position", {"tokens": "(B,L)", "table": "(V,M)"}, "(B,L,M)",
    {"padding": "(B,): so many tokens at the start of a row are none; positions count from the first that is one",
     "layout": "as for positional_encoding"},
    defaults=ENCODINGS,
)  # fmt: skip
