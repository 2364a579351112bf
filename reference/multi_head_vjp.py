"""The gradient of multi-head attention: that of attention between those of the projections. Letters as in
multi_head.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.reference.attention import attention, stored
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.reference.layers_vjp import weight_vjp
from qkverify.reference.multi_head import merge_heads, split_heads
from qkverify.reference.sizes import Array


def multi_head_vjp(
    x: Array, w_q: Array, w_k: Array, w_v: Array, w_o: Array, upstream: Array, *, heads: int,
    key_heads: int | None = None, context: Array | None = None, delta: str = "weights", **options: Any,
) -> dict[str, Array]:  # fmt: skip
    """The gradients of sum(upstream * output), upstream (B,L,M), by name; of "context" (B,K,M) where it is given.

    delta as in `attention_vjp`; the other arguments as in `multi_head_attention`.
    """
    source = x if context is None else context                              # (B,K,M)
    shared = heads if key_heads is None else key_heads                      # G
    query = split_heads(stored(x @ w_q), heads)                             # (B,H,L,D)
    key = split_heads(stored(source @ w_k), shared)                         # (B,G,K,D)
    value = split_heads(stored(source @ w_v), shared)                       # (B,G,K,E)
    joined = merge_heads(attention(query, key, value, **options))           # (B,L,H*E)
    d_output = split_heads(stored(upstream @ np.swapaxes(w_o, 0, 1)), heads)  # (B,H,L,E)
    inner = attention_vjp(query, key, value, d_output, delta=delta, **options)
    d_query, d_key, d_value = (merge_heads(inner[name]) for name in ("query", "key", "value"))
    d_x = stored(d_query @ np.swapaxes(w_q, 0, 1))                          # (B,L,M)
    d_source = stored(
        stored(d_key @ np.swapaxes(w_k, 0, 1)) + stored(d_value @ np.swapaxes(w_v, 0, 1))
    )                                                                       # (B,K,M)
    tokens = {"x": stored(d_x + d_source)} if context is None else {"x": d_x, "context": d_source}
    return {
        **tokens, "w_q": weight_vjp(x, d_query), "w_k": weight_vjp(source, d_key),
        "w_v": weight_vjp(source, d_value), "w_o": weight_vjp(joined, upstream),
    }  # fmt: skip
