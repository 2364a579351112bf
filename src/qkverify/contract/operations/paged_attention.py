"""What is said of paged attention."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import SERVED, SERVING

ORDER = 110
OPERATION = Operation(
    "causal attention over a cache in pages",
    {"query": "(B,H,Q,D), the last tokens", "key_pages": "(pages,rows,G,D)", "value_pages": "(pages,rows,G,E)",
     "page_table": "(B,.): the pages of each entry in order", "lengths": "(B,): all its tokens, the queries' own among them"},
    "(B,H,Q,E)", SERVING,
    ("gradients are those by the query and by the pages, summed where several entries have a page", SERVED),
)  # fmt: skip
