"""softmax(Q K^T / sqrt(D)) V: "Attention is all you need", section 3.2.1, with the options that kernels have.

B batch, H query heads, G key/value heads (H = G * group), Q queries, K keys, D key size, E value size.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.groups import per_query_head
from qkverify.reference.masks import Window
from qkverify.reference.scores import scores
from qkverify.reference.sizes import Array, check_sizes
from qkverify.reference.softmax import log_sum_exp, softmax

# "An implementation stores this in its output dtype", "it merges this of splits of the keys": duck arrays may round here.
stored, merged = np.positive, np.copy


def with_sinks(logits: Array, sinks: Array | None) -> Array:
    """One more logit per head, as the last column: (B,H,Q,K) and sinks (H,) -> (B,H,Q,K+1)."""
    if sinks is None:
        return logits
    column = np.broadcast_to(sinks[:, None, None], (*logits.shape[:3], 1))  # (B,H,Q,1)
    return np.concatenate([logits, column], axis=-1)  # (B,H,Q,K+1)


def weights(logits: Array, *, sinks: Array | None = None, empty_rows: str = "zero") -> Array:
    """softmax over the keys, (B,H,Q,K); `empty_rows` says what a row of -inf gives to every key."""
    keys, even = logits.shape[-1], 1.0 / max(logits.shape[-1], 1)
    empty = {"zero": 0.0, "nan": np.nan, "uniform": even, "uniform with gradients": even}[empty_rows]
    probabilities = softmax(with_sinks(logits, sinks))[..., :keys]  # (B,H,Q,K)
    if empty == 0.0 or sinks is not None:
        return probabilities
    nonempty = np.max(logits, axis=-1, keepdims=True, initial=-np.inf) > -np.inf  # (B,H,Q,1)
    return np.where(nonempty, probabilities, empty)  # (B,H,Q,K)


def attention(
    query: Array, key: Array, value: Array, *, mask: Array | None = None, bias: Array | None = None,
    causal: bool = False, window: Window | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Array | None = None, key_lengths: Array | None = None,
    sinks: Array | None = None, return_lse: bool = False, causal_alignment: str = "bottom-right",
    empty_rows: str = "zero",
) -> Array:  # fmt: skip
    """query (B,H,Q,D), key (B,G,K,D), value (B,G,K,E) -> output (B,H,Q,E), or (output, log-sum-exp (B,H,Q)).

    mask True = may attend; causal, window, key_lengths as in `visible`; softcap: c tanh(scores / c); ALiBi:
    -slope * distance; a sink takes weight, gives nothing. A row that sees no key gives 0, NaN or the mean of
    all values ("zero", "nan", "uniform" with gradients or without), log-sum-exp -inf; where K = 0, always 0.
    """
    check_sizes(query, key, value)
    logits = scores(
        query, key, mask=mask, bias=bias, causal=causal, window=window, scale=scale, softcap=softcap,
        alibi_slopes=alibi_slopes, key_lengths=key_lengths, causal_alignment=causal_alignment,
    )  # fmt: skip                                                          # (B,H,Q,K)
    probabilities = weights(logits, sinks=sinks, empty_rows=empty_rows)  # (B,H,Q,K)
    output = stored(merged(probabilities @ per_query_head(value, query.shape[1])))  # (B,H,Q,E)
    return (output, log_sum_exp(with_sinks(logits, sinks))) if return_lse else output
