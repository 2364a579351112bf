"""The gradient of attention, as kernels compute it: the weights again, from scores and log-sum-exp, then the
chain rule by hand (Dao et al., "FlashAttention", appendix B.2). Letters as in attention.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.reference.attention import attention, stored, with_sinks
from qkverify.reference.groups import per_key_head, per_query_head, summed_to
from qkverify.reference.scores import factor, scores, through_softcap
from qkverify.reference.sizes import Array, check_sizes
from qkverify.reference.softmax import log_sum_exp


def attention_vjp(
    query: Array, key: Array, value: Array, upstream: Array, *, sinks: Array | None = None,
    lse_upstream: Array | None = None, delta: str = "weights", empty_rows: str = "zero", **options: Any,
) -> dict[str, Array]:  # fmt: skip
    """The gradients of sum(upstream * output) + sum(lse_upstream * lse), each in the shape of its argument.

    upstream (B,H,Q,E), lse_upstream (B,H,Q), options of `attention` but return_lse. By name: "query", "key",
    "value", and "bias" and "sinks" where given. delta is rowsum(P dP) ("weights"), or rowsum(upstream output)
    from the stored output ("output"). A row that sees no key gives none, but to the values under "uniform"; and
    "with gradients", where hidden scores are sums with a lowest number, as a row of equal scores does.
    """
    check_sizes(query, key, value)
    bias, scale, softcap = (options.get(name) for name in ("bias", "scale", "softcap"))
    logits = scores(query, key, **options)                                              # (B,H,Q,K)
    lse = log_sum_exp(with_sinks(logits, sinks))[..., None]                             # (B,H,Q,1)
    shift = np.where(lse > -np.inf, lse, 0.0)                                           # (B,H,Q,1)
    even = np.where(lse > -np.inf, logits, -np.log(max(logits.shape[-1], 1)))           # (B,H,Q,K)
    rows = "uniform" if empty_rows == "uniform with gradients" else "zero"
    weights = np.exp((even if rows == "uniform" else logits) - shift)                   # (B,H,Q,K)
    d_weights = upstream @ np.swapaxes(per_query_head(value, query.shape[1]), -1, -2)   # (B,H,Q,K)
    if delta == "output":
        output = attention(query, key, value, sinks=sinks, empty_rows=rows, **options)  # (B,H,Q,E)
        row = np.sum(upstream * output, axis=-1, keepdims=True)                         # (B,H,Q,1)
    else:
        row = np.sum(weights * d_weights, axis=-1, keepdims=True)                       # (B,H,Q,1)
    if lse_upstream is not None:
        row = row - lse_upstream[..., None]                                             # d lse = P
    d_logits = weights * (d_weights - row)                                              # (B,H,Q,K)
    d_products = through_softcap(d_logits * factor(query.shape[-1], scale), query, key, scale, softcap)
    if empty_rows == "uniform":
        weights = np.exp(even - shift)
    gradients = {
        "query": stored(d_products @ per_query_head(key, query.shape[1])),              # (B,H,Q,D)
        "key": stored(per_key_head(d_products, query, key.shape[1])),                   # (B,G,K,D)
        "value": stored(per_key_head(weights, upstream, key.shape[1])),                 # (B,G,K,E)
    }
    if bias is not None:
        gradients["bias"] = stored(summed_to(stored(d_logits), bias.shape))             # stored, then summed
    if sinks is not None:
        weight = np.exp(sinks[:, None, None] - shift)                                   # (B,H,Q,1)
        gradients["sinks"] = stored(-np.sum(weight * row, axis=(0, 2, 3)))              # (H,)
    return gradients
