"""What is said of packed attention."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import SERVING

ORDER = 90
OPERATION = Operation(
    "attention of sequences that lie after one another",
    {"query": "(T,H,D)", "key": "(S,G,D)", "value": "(S,G,E)",
     "query_starts": "(n+1,): where each sequence begins, and the end", "key_starts": "(n+1,)"}, "(T,H,E)",
    {**SERVING, "longest_query, longest_key": "the longest sequence"},
)  # fmt: skip
