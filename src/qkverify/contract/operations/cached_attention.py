"""What is said of cached attention."""

from __future__ import annotations

from qkverify.contract.operation import Operation
from qkverify.contract.shared_options import SERVED, SERVING

ORDER = 100
OPERATION = Operation(
    "new tokens are appended to a cache, which is written, and attend to it causally",
    {"query": "(B,H,Q,D), the new tokens", "key": "(B,G,Q,D)", "value": "(B,G,Q,E)", "key_cache": "(B,G,room,D)",
     "value_cache": "(B,G,room,E)", "lengths": "(B,): tokens in the cache before the call"}, "(B,H,Q,E)", SERVING,
    ("gradients are those by query, key and value, and by the caches as they were before the call", SERVED),
)  # fmt: skip
