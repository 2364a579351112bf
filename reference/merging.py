"""Attention to two sets of keys put together, from the output and the log-sum-exp of each: (..., E) and (...).

A side that has seen no key has a log-sum-exp of -inf and no share; where both have, the output is 0 and the log-sum-exp -inf.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.sizes import Array
from qkverify.reference.softmax import log_sum_exp, softmax, softmax_vjp


def merged_attention(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """(the mean of both outputs, weighted by exp(lse); log(exp(lse_a) + exp(lse_b)))."""
    logits = np.stack([lse_a, lse_b], axis=-1)                              # (..., 2)
    shares = softmax(logits)                                                # (..., 2)
    return stored(shares[..., :1] * o_a + shares[..., 1:] * o_b), log_sum_exp(logits)


def merged_attention_vjp(
    o_a: Array, lse_a: Array, o_b: Array, lse_b: Array, upstream: Array, lse_upstream: Array
) -> dict[str, Array]:
    """upstream (..., E) of the output, lse_upstream (...): the shares are a softmax of the two log-sum-exps, and so is d lse."""
    shares = softmax(np.stack([lse_a, lse_b], axis=-1))                     # (..., 2)
    along = np.stack([np.sum(upstream * o, axis=-1) for o in (o_a, o_b)], axis=-1)  # (..., 2)
    d_lse = stored(softmax_vjp(shares, along) + shares * lse_upstream[..., None])  # (..., 2)
    return {
        "o_a": stored(shares[..., :1] * upstream), "lse_a": d_lse[..., 0],
        "o_b": stored(shares[..., 1:] * upstream), "lse_b": d_lse[..., 1],
    }  # fmt: skip
