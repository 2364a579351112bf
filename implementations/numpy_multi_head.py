"""Multi-head attention in NumPy, one head after the other: no reshape that could mix heads and tokens."""

from __future__ import annotations

import numpy as np

from qkverify import implementation


@implementation(name="numpy_multi_head", dtypes=("float32", "float64"))
def multi_head_attention(
    x: np.ndarray,
    w_q: np.ndarray,
    w_k: np.ndarray,
    w_v: np.ndarray,
    w_o: np.ndarray,
    *,
    heads: int,
    causal: bool = False,
) -> np.ndarray:
    """x (B,L,M), w_q, w_k, w_v (M, heads * D), w_o (heads * D, M) -> (B,L,M)."""
    size = w_q.shape[1] // heads
    output = np.zeros((*x.shape[:2], w_o.shape[1]), x.dtype)
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        query, key, value = x @ w_q[:, columns], x @ w_k[:, columns], x @ w_v[:, columns]  # (B,L,D)
        scores = query @ key.swapaxes(-1, -2) * x.dtype.type(size**-0.5)  # (B,L,L)
        if causal:
            scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        output += weights / weights.sum(axis=-1, keepdims=True) @ value @ w_o[columns]
    return output
