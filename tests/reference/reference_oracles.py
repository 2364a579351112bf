"""What `reference/` is checked against: attention word by word with 50 digits, and what rounding may change.

`attention_by_words` is loops over dot products: no matrix, no shift, no masked score, so it shares no
mistake with the reference. The bounds count roundings to the unit roundoff u: a product of n operations,
each off by a factor within exp(+-u), is off by one within exp(+-n u), and a sum of such terms by expm1(n u)
times their magnitudes.

    a score        D + SCORE operations, functions included, on terms whose magnitudes add up to S
    its exponent   the same, and the shift by the largest score, which rounds a difference of at most 2 max S
    a weight       relatively: two exponents (its own, those in the sum), two functions, K + 1 operations
    an output      a weight, times a value, K operations
    a gradient     see `growth`
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpmath import mp, mpf

from qkverify.reference import attention, scores, weights

DIGITS = 50
U = 2.0**-53
# Roundings of an exp, log or tanh: NumPy's vectorised ones stay within 4 ulp, and an ulp is 2 u.
FUNCTION = 8
# Operations on a score but for its D products: scale, cap and bias, the roots and the tanh.
SCORE = 10 + FUNCTION


def attention_by_words(
    query: Any, key: Any, value: Any, *, mask: Any = None, bias: Any = None, causal: bool = False,
    window: Any = None, scale: Any = None, softcap: Any = None, alibi_slopes: Any = None,
    key_lengths: Any = None, sinks: Any = None, causal_alignment: str = "bottom-right",
) -> tuple[Any, Any]:  # fmt: skip
    """output (B,H,Q,E) and log-sum-exp (B,H,Q), mpf; inputs are floats or mpf. Empty rows give 0 and -inf."""
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
            if (key_lengths is not None and j >= key_lengths[b]) or (
                mask is not None and not mask[b, h, i, j]
            ):
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


def magnitudes(
    query: Any, key: Any, *, scale: Any = None, bias: Any = None, alibi_slopes: Any = None, **options: Any
) -> Any:
    """S (B,H,Q,K): the magnitudes of all that is summed to a score; 0 where the key is invisible."""
    visible = np.isfinite(scores(query, key, bias=bias, **options))
    largest = scores(
        np.abs(query), np.abs(key), scale=None if scale is None else abs(scale),
        bias=None if bias is None else np.where(np.isfinite(bias), np.abs(bias), 0.0),
        alibi_slopes=None if alibi_slopes is None else -np.abs(alibi_slopes),
        causal_alignment=options.get("causal_alignment", "bottom-right"),
    )  # fmt: skip
    return np.where(visible, largest, 0.0)


def relative(S: Any, size: int, *, sinks: Any = None, unit: float = U) -> Any:
    """The relative error of the weights of each row, and of their sum: S (B,H,Q,K), D -> (B,H,Q,1)."""
    highest = np.max(S, axis=-1, keepdims=True, initial=0.0)
    if sinks is not None:
        highest = np.maximum(highest, np.abs(sinks)[:, None, None])
    exponent = (size + SCORE + 2) * unit * highest
    return np.expm1(2 * exponent + (2 * FUNCTION + S.shape[-1] + 2) * unit)


def bounds(
    query: Any, key: Any, value: Any, *, sinks: Any = None, unit: float = U, **options: Any
) -> tuple[Any, Any]:
    """The bounds of the output (B,H,Q,E) and of the log-sum-exp (B,H,Q)."""
    group, keys = query.shape[1] // max(key.shape[1], 1), key.shape[2]
    weight = relative(magnitudes(query, key, **options), query.shape[-1], sinks=sinks, unit=unit)
    p = weights(scores(query, key, **options), sinks=sinks)
    output = (weight + np.expm1((keys + 1) * unit) * (1 + weight)) * (
        p @ np.repeat(np.abs(value), group, axis=1)
    )
    # The logarithm makes an absolute error of a relative one; then it rounds itself, and so does adding the
    # shift.
    lse = attention(query, key, value, sinks=sinks, return_lse=True, **options)[1]
    size = np.where(np.isfinite(lse), np.abs(lse), 0.0) + FUNCTION * np.log(keys + 1)
    return output, weight[..., 0] + 2 * unit * size


def growth(query: Any, key: Any, value: Any, *, sinks: Any = None, **options: Any) -> float:
    """What the magnitudes of a gradient's terms are multiplied by.

    A term holds at most two weights, exp(score - log-sum-exp), and the derivative of the cap, 1 - tanh(s /
    c)^2, which depends on its score like 2 / c more exponents. Its other operations are sums over keys,
    queries and sizes.
    """
    (_, H, Q, D), G, (K, E) = query.shape, key.shape[1], value.shape[2:]
    S = magnitudes(query, key, **options)
    lse = attention(query, key, value, sinks=sinks, return_lse=True, **options)[1]
    highest = max(
        float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0))
        for x in (S, lse, np.zeros(1) if sinks is None else sinks)
    )
    exponents = 4 + 2 / options.get("softcap", np.inf)
    operations = K + Q * (H // G) + D + E + 4 * FUNCTION + SCORE
    return float(np.expm1((operations + exponents * (D + K + SCORE + FUNCTION) * highest) * U))


def off(got: Any, exact: Any, bound: Any) -> float:
    """Largest |got - exact| / bound: at most 1 if all is right; inf for NaN and for a missed bound of 0."""
    worst = 0.0
    for a, b, limit in zip(
        np.ravel(got), np.ravel(exact), np.ravel(np.broadcast_to(bound, np.shape(got))), strict=True
    ):
        if not (np.isfinite(float(a)) and mp.isfinite(b)):
            worst = max(worst, 0.0 if mpf(float(a)) == b else float("inf"))
        elif distance := abs(mpf(float(a)) - b):
            worst = max(worst, float(distance / mpf(float(limit))) if limit else float("inf"))
    return worst
