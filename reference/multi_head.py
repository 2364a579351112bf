"""Multi-head attention: Concat(head_1, ..., head_H) W_O, head_i = attention(x W_Q^i, c W_K^i, c W_V^i).

"Attention is all you need", section 3.2.2. Letters: B batch, L length, M model size, H heads, D head size.
The columns of W_Q, W_K and W_V hold the heads side by side, so that one product projects to all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.reference.attention import attention, stored
from qkverify.reference.sizes import Array


def split_heads(x: Array, heads: int) -> Array:
    """(B,L,H*D) -> (B,H,L,D). ValueError unless `heads` divides the last axis."""
    batch, length, size = x.shape
    if heads < 1 or size % heads:
        raise ValueError(f"{x.shape} does not split into {heads} heads: they must divide the last axis")
    return np.swapaxes(np.reshape(x, (batch, length, heads, size // heads)), 1, 2)


def merge_heads(x: Array) -> Array:
    """(B,H,L,D) -> (B,L,H*D), the inverse of `split_heads`."""
    batch, heads, length, size = x.shape
    return np.reshape(np.swapaxes(x, 1, 2), (batch, length, heads * size))


def multi_head_attention(
    x: Array, w_q: Array, w_k: Array, w_v: Array, w_o: Array, *, heads: int, key_heads: int | None = None,
    context: Array | None = None, **options: Any,
) -> Array:  # fmt: skip
    """x (B,L,M), w_q (M,H*D), w_k (M,G*D), w_v (M,G*E), w_o (H*E,M) -> (B,L,M).

    Keys and values come from `context` (B,K,M) if given (in a decoder: the encoder's output), else from x.
    `key_heads` is G, by default H. The other options are those of `attention`: causal, mask, and so on.
    """
    source = x if context is None else context                              # (B,K,M)
    shared = heads if key_heads is None else key_heads                      # G
    query = split_heads(stored(x @ w_q), heads)                             # (B,H,L,D)
    key = split_heads(stored(source @ w_k), shared)                         # (B,G,K,D)
    value = split_heads(stored(source @ w_v), shared)                       # (B,G,K,E)
    output = attention(query, key, value, **options)                        # (B,H,L,E)
    return stored(merge_heads(output) @ w_o)                                # (B,L,M)
