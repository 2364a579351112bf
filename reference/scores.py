"""The scores of every key for every query, and what acts on them before the softmax, in this order: scale,
softcap, bias, ALiBi, mask. Letters as in attention.py.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.groups import per_query_head
from qkverify.reference.masks import Window, distance, visible
from qkverify.reference.sizes import Array, check_broadcasts


def factor(size: int, scale: float | None) -> float:
    """What the products are multiplied by: `scale`, or D^-1/2 (1 where D = 0: the products are 0)."""
    return max(size, 1) ** -0.5 if scale is None else scale


def products(query: Array, key: Array, scale: float | None = None) -> Array:
    """q_i . k_j, scaled: query (B,H,Q,D), key (B,G,K,D) -> (B,H,Q,K)."""
    key = per_query_head(key, query.shape[1])  # (B,H,K,D)
    return query @ np.swapaxes(key, -1, -2) * factor(query.shape[-1], scale)  # (B,H,Q,K)


def through_softcap(
    gradient: Array, query: Array, key: Array, scale: float | None, softcap: float | None
) -> Array:
    """The gradient by the products, (B,H,Q,K), from the one by what a softcap made of them."""
    if softcap is None or not np.isfinite(softcap):
        return gradient
    capped = np.tanh(products(query, key, scale) / softcap)  # (B,H,Q,K)
    return gradient * (1.0 - capped * capped)  # d tanh = 1 - tanh^2


def scores(
    query: Array, key: Array, *,
    mask: Array | None = None, bias: Array | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None, alibi_slopes: Array | None = None,
    key_lengths: Array | None = None, causal_alignment: str = "bottom-right",
) -> Array:  # fmt: skip
    """query (B,H,Q,D), key (B,G,K,D) -> (B,H,Q,K), -inf where it is invisible; options as in `attention`."""
    logits = products(query, key, scale)  # (B,H,Q,K)
    batch, _, queries, keys = logits.shape
    if softcap is not None and np.isfinite(softcap):  # an infinite cap caps nothing
        logits = softcap * np.tanh(logits / softcap)
    if bias is not None:
        check_broadcasts("bias", bias, logits.shape)
        logits = logits + bias
    if alibi_slopes is not None:
        logits = logits - alibi_slopes[:, None, None] * distance(queries, keys, causal_alignment)
    if causal or any(option is not None for option in (mask, window, key_lengths)):
        if mask is not None:
            check_broadcasts("mask", mask, logits.shape)
        allowed = visible(
            batch, queries, keys, causal=causal, window=window, mask=mask, key_lengths=key_lengths,
            causal_alignment=causal_alignment,
        )  # fmt: skip                                                      # (B,H,Q,K)
        logits = np.where(allowed, logits, -np.inf)
    return logits
