"""The gradient of attention as automatic differentiation has it: exp, sum and division one by one, and the maximum, whose own
gradient is zero on paper. Letters as in attention.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.groups import per_key_head, per_query_head, summed_to
from qkverify.reference.scores import factor, scores, through_softcap
from qkverify.reference.sizes import Array, check_sizes
from qkverify.reference.softmax import largest, through_maximum


def attention_vjp_in_steps(
    query: Array, key: Array, value: Array, upstream: Array, *, divided: str = "weights", **options: Any
) -> dict[str, Array]:
    """As `attention_vjp`, without sinks; options of `scores`. A row that sees no key gives none.

    `divided` by the sum of the exponentials are the "weights", or the "output", after the product with the values.
    """
    check_sizes(query, key, value)
    bias, scale, softcap = (options.get(name) for name in ("bias", "scale", "softcap"))
    logits = scores(query, key, **options)                                              # (B,H,Q,K)
    exponentials = np.exp(logits - largest(logits, -1))                                 # (B,H,Q,K)
    total = np.sum(exponentials, axis=-1, keepdims=True)                                # (B,H,Q,1)
    total = np.where(total > 0, total, 1.0)                                             # (B,H,Q,1)
    values = per_query_head(value, query.shape[1])                                      # (B,H,K,E)
    if divided == "output":
        shares, above = exponentials, upstream / total                                  # (B,H,Q,K), (B,H,Q,E)
        along = upstream * (exponentials @ values / total / total)                      # (B,H,Q,E)
        d_exponentials = above @ np.swapaxes(values, -1, -2)                            # (B,H,Q,K)
    else:
        shares, above = exponentials / total, upstream                                  # (B,H,Q,K), (B,H,Q,E)
        d_weights = upstream @ np.swapaxes(values, -1, -2)                              # (B,H,Q,K)
        along, d_exponentials = d_weights * (shares / total), d_weights / total         # (B,H,Q,K)
    d_total = np.sum(along, axis=-1, keepdims=True)                                     # (B,H,Q,1)
    d_logits = through_maximum(logits, exponentials * (d_exponentials - d_total))       # (B,H,Q,K)
    d_products = through_softcap(d_logits * factor(query.shape[-1], scale), query, key, scale, softcap)
    gradients = {
        "query": stored(d_products @ per_query_head(key, query.shape[1])),              # (B,H,Q,D)
        "key": stored(per_key_head(d_products, query, key.shape[1])),                   # (B,G,K,D)
        "value": stored(per_key_head(shares, above, key.shape[1])),                     # (B,G,K,E)
    }
    if bias is not None:
        gradients["bias"] = stored(summed_to(stored(d_logits), bias.shape))             # stored, then summed
    return gradients
