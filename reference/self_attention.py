"""Self-attention in three steps, for one sequence without heads: "The Transformer and Self-Attention", v2.

Each step is a special case of `attention`: of embeddings; of queries and keys; of queries, keys and values.
Letters: B batch, L length, M embedding size, D key size (4 in the toy example: divide by 2), E value size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.reference.attention import attention
from qkverify.reference.sizes import Array


def from_embeddings(x: Array) -> Array:
    """sum over j != i of softmax_j(x_i . x_j) x_j: each word from the other words. x (B,L,M) -> (B,L,M).

    Without weights, unscaled, and without the own word, whose product with itself would win.
    """
    others = ~np.eye(x.shape[1], dtype=bool)                                # (L,L)
    return alone(x, x, x, mask=others, scale=1.0)


def from_queries_and_keys(x: Array, w_q: Array, w_k: Array) -> Array:
    """softmax(Q K^T / sqrt(D)) K, Q = x W_Q, K = x W_K: the keys are mixed. x (B,L,M), w (M,D) -> (B,L,D)."""
    key = x @ w_k                                                           # (B,L,D)
    return alone(x @ w_q, key, key)


def from_queries_keys_and_values(x: Array, w_q: Array, w_k: Array, w_v: Array) -> Array:
    """softmax(Q K^T / sqrt(D)) V, V = x W_V. x (B,L,M), w_q and w_k (M,D), w_v (M,E) -> (B,L,E)."""
    return alone(x @ w_q, x @ w_k, x @ w_v)


def alone(query: Array, key: Array, value: Array, **options: Any) -> Array:
    """Attention of one head: (B,L,D), (B,L,D), (B,L,E) -> (B,L,E)."""
    return attention(query[:, None], key[:, None], value[:, None], **options)[:, 0]
