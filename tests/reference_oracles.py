"""What `reference/` is checked against: attention word by word with 50 digits, and how far float64 may be away from it.

`attention_by_words` is loops over dot products: no matrix, no shift, no masked score, so it shares no mistake with the
reference. The bound is a count of roundings. Every result of the reference is a sum of terms (weight times value, weight
times weight times product, ...). A term goes through at most `roundings` operations, each off by a factor within
exp(+-u). And it holds at most two weights, thus four exponents, a score and a log-sum-exp each, which are computed with
an absolute error of at most `roundings` u M, where M bounds every score and all that is summed on the way to it. A
derivative of the cap, 1 - tanh(s / c)^2, depends on its score like 2 / c more exponents. So

    |got - exact| <= expm1(roundings u (1 + exponents M)) * (the same sum over absolute values).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpmath import mp, mpf

from qkverify.reference import attention, scores, weights

DIGITS = 50
U = 2.0**-53
FUNCTION = 8  # roundings that stand for one exp, log or tanh: NumPy's vectorised ones stay within 4 ulp, an ulp is 2 u
OTHER = 40  # scale, cap, bias, shift, quotient and the other single operations of a term, four functions among them


def attention_by_words(
    query: Any, key: Any, value: Any, *, mask: Any = None, bias: Any = None, causal: bool = False,
    window: Any = None, scale: Any = None, softcap: Any = None, alibi_slopes: Any = None, key_lengths: Any = None,
    sinks: Any = None, causal_alignment: str = "bottom-right",
) -> tuple[Any, Any]:  # fmt: skip
    """output (B,H,Q,E) and log-sum-exp (B,H,Q) as arrays of mpf; inputs are floats or mpf. Empty rows give 0, -inf."""
    (B, H, Q, D), G, (K, E) = query.shape, key.shape[1], value.shape[2:]
    bias, mask = (x if x is None else np.broadcast_to(x, (B, H, Q, K)) for x in (bias, mask))
    left, right = window or (None, None)
    scale = 1 / mp.sqrt(max(D, 1)) if scale is None else mpf(scale)
    output, lse = np.empty((B, H, Q, E), dtype=object), np.empty((B, H, Q), dtype=object)
    for b, h, i in np.ndindex(B, H, Q):
        position = i + K - Q if causal_alignment == "bottom-right" else i
        attended = {}
        for j in range(K):
            if causal and j > position:
                continue
            if (left is not None and j < position - left) or (right is not None and j > position + right):
                continue
            if (key_lengths is not None and j >= key_lengths[b]) or (mask is not None and not mask[b, h, i, j]):
                continue
            score = scale * mp.fdot(query[b, h, i], key[b, h * G // H, j])
            if softcap is not None:
                score = softcap * mp.tanh(score / softcap)
            if bias is not None:
                score += bias[b, h, i, j]
            if alibi_slopes is not None:
                score -= alibi_slopes[h] * mpf(abs(position - j))
            attended[j] = mp.exp(score)
        total = mp.fsum(attended.values()) + (0 if sinks is None else mp.exp(sinks[h]))
        lse[b, h, i] = mp.log(total) if total else mpf("-inf")
        for e in range(E):
            taken = mp.fdot((weight, value[b, h * G // H, j, e]) for j, weight in attended.items())
            output[b, h, i, e] = taken / total if total else mpf(0)
    return output, lse


def growth(query: Any, key: Any, value: Any, **options: Any) -> float:
    """expm1(roundings u (1 + exponents M)) of the module's docstring, for one attention problem."""
    (_, H, Q, D), G, (K, E) = query.shape, max(key.shape[1], 1), value.shape[2:]
    roundings = K + Q * (H // G) + D + E + 4 * FUNCTION + OTHER
    slopes = options.get("alibi_slopes")
    positive = {"bias": options.get("bias"), "alibi_slopes": None if slopes is None else -np.abs(slopes)}
    largest = np.abs(scores(np.abs(query), np.abs(key), scale=options.get("scale"), **absolute(positive)))
    lse = attention(query, key, value, return_lse=True, **options)[1]
    sinks = options.get("sinks")
    candidates = [largest, np.abs(lse), np.zeros(1) if sinks is None else np.abs(sinks)]
    M = max(float(np.max(x[np.isfinite(x)], initial=0.0)) for x in candidates)
    exponents = 4 + 2 / options.get("softcap", np.inf)
    return float(np.expm1(roundings * U * (1 + exponents * M)))


def absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Options whose contributions to the scores all add up: -inf, a mask, is left out."""
    bias = options["bias"]
    return options | {"bias": None if bias is None else np.where(np.isfinite(bias), np.abs(bias), 0.0)}


def bounds(query: Any, key: Any, value: Any, **options: Any) -> tuple[Any, Any]:
    """The bounds of the output (B,H,Q,E) and of the log-sum-exp (B,H,Q): of a logarithm, a relative error is absolute."""
    near = {name: option for name, option in options.items() if name != "sinks"}
    p = weights(scores(query, key, **near), sinks=options.get("sinks"))
    group = query.shape[1] // max(key.shape[1], 1)
    grown = growth(query, key, value, **options)
    return grown * (p @ np.repeat(np.abs(value), group, axis=1)), np.full(query.shape[:3], grown)


def off(got: Any, exact: Any, bound: Any) -> float:
    """The largest |got - exact| / bound: at most 1 where all is right; inf for NaN, or where a bound of 0 is missed."""
    worst = 0.0
    for a, b, limit in zip(np.ravel(got), np.ravel(exact), np.ravel(np.broadcast_to(bound, np.shape(got))), strict=True):
        if not (np.isfinite(float(a)) and mp.isfinite(b)):
            worst = max(worst, 0.0 if mpf(float(a)) == b else float("inf"))
        elif distance := abs(mpf(float(a)) - b):
            worst = max(worst, float(distance / mpf(float(limit))) if limit else float("inf"))
    return worst
