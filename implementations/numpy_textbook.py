"""Attention as the textbook writes it: the whole score matrix, one line a step, every option of the
contract.

It computes in the dtype of its inputs. A query that sees no key gets zeros, and a key that a query does not
see has no influence on it, not even by NaN: zero times NaN is NaN, so a weight of zero alone would not keep
it out.

Dimension letters: B batch, H query heads, G key/value heads, Q queries, K keys, D key size, E value size.
"""

from __future__ import annotations

import numpy as np

from qkverify import implementation

Array = np.ndarray
Window = tuple[int | None, int | None]


@implementation(
    name="numpy_textbook",
    summary="the whole score matrix, one line a step, every option, with its gradients",
    arrays="numpy",
    dtypes=("float64", "float32"),
    causal_alignment="bottom-right",
    empty_rows="zero",
    masked_values="ignored",
    deterministic=True,
    batch_invariant=True,
    delta="weights",
    lse="natural",
)
@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def attention(
    query: Array, key: Array, value: Array, *,
    mask: Array | None = None, bias: Array | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None,
    alibi_slopes: Array | None = None, key_lengths: Array | None = None, sinks: Array | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:  # fmt: skip
    """softmax(query key^T) value, (B,H,Q,E), and the log-sum-exp, (B,H,Q), if it is asked for."""
    key, value = per_query_head(query, key, value)
    allowed = visible(query, key, mask, bias, causal, window, key_lengths)
    scores = scaled_products(query, key, scale)  # (B,H,Q,K)
    logits = np.where(allowed, added(capped(scores, softcap), bias, alibi_slopes), -np.inf)
    weights, lse = softmax(logits, sinks)
    output = product_of_seen(weights, value, allowed)  # (B,H,Q,E)
    return (output, lse) if return_lse else output


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def attention_vjp(
    query: Array, key: Array, value: Array, upstream: Array, *,
    mask: Array | None = None, bias: Array | None = None, causal: bool = False, window: Window | None = None,
    scale: float | None = None, softcap: float | None = None,
    alibi_slopes: Array | None = None, key_lengths: Array | None = None, sinks: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The gradients of sum(upstream * attention(...)) by query, key and value."""
    groups = key.shape[1]
    key, value = per_query_head(query, key, value)
    allowed = visible(query, key, mask, bias, causal, window, key_lengths)
    scores = scaled_products(query, key, scale)
    logits = np.where(allowed, added(capped(scores, softcap), bias, alibi_slopes), -np.inf)
    weights, _ = softmax(logits, sinks)

    d_value = product_of_seen(weights.swapaxes(-1, -2), upstream, allowed.swapaxes(-1, -2))  # (B,H,K,E)
    d_weights = np.where(allowed, upstream @ value.swapaxes(-1, -2), 0)  # (B,H,Q,K)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    d_scores = np.where(allowed, d_logits * capped_slope(scores, softcap), 0) * scale_of(query, scale)
    d_query = product_of_seen(d_scores, key, allowed)  # (B,H,Q,D)
    d_key = product_of_seen(d_scores.swapaxes(-1, -2), query, allowed.swapaxes(-1, -2))  # (B,H,K,D)
    return d_query, summed_over_group(d_key, groups), summed_over_group(d_value, groups)


def per_query_head(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Key and value (B,G,K,.) -> (B,H,K,.): query head h reads key/value head h // (H // G)."""
    q, k, v = query.shape, key.shape, value.shape
    group = q[1] // max(k[1], 1)
    if (q[0], q[3]) != (k[0], k[3]) or k[:3] != v[:3] or q[1] != k[1] * group:
        raise ValueError(f"sizes do not match: query {q}, key {k}, value {v}")
    return np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)


def summed_over_group(gradient: Array, groups: int) -> Array:
    """(B,H,K,.) -> (B,G,K,.): a key/value head has the gradients of all query heads that read it."""
    batch, heads, keys, size = gradient.shape
    return gradient.reshape(batch, groups, heads // max(groups, 1), keys, size).sum(axis=2)


def visible(query: Array, key: Array, mask: Array | None, bias: Array | None, causal: bool,
            window: Window | None, key_lengths: Array | None) -> Array:  # fmt: skip
    """(B,H,Q,K): which keys each query sees. The last query stands at the last key."""
    (batch, heads, queries, _), keys = query.shape, key.shape[2]
    distance = np.arange(keys) - np.arange(keys - queries, keys)[:, None]  # (Q,K): key less query position
    left, right = window or (None, None)
    allowed = np.ones((queries, keys), dtype=bool)
    allowed &= distance <= 0 if causal else True
    allowed &= True if left is None else distance >= -left
    allowed &= True if right is None else distance <= right
    allowed = allowed if mask is None else allowed & mask
    allowed = allowed if bias is None else allowed & (bias != -np.inf)
    allowed = (
        allowed if key_lengths is None else allowed & (np.arange(keys) < key_lengths[:, None, None, None])
    )
    return np.broadcast_to(allowed, (batch, heads, queries, keys))


def scale_of(query: Array, scale: float | None) -> float:
    return float(scale) if scale is not None else max(query.shape[3], 1) ** -0.5


def scaled_products(query: Array, key: Array, scale: float | None) -> Array:
    return query @ key.swapaxes(-1, -2) * scale_of(query, scale)


def capped(scores: Array, softcap: float | None) -> Array:
    return scores if softcap in (None, np.inf) else softcap * np.tanh(scores / softcap)


def capped_slope(scores: Array, softcap: float | None) -> Array | float:
    """The derivative of `capped`."""
    return 1.0 if softcap in (None, np.inf) else 1 - np.tanh(scores / softcap) ** 2


def added(scores: Array, bias: Array | None, alibi_slopes: Array | None) -> Array:
    """The scores with the bias, and less ALiBi's slope times distance."""
    queries, keys = scores.shape[2:]
    if bias is not None:
        scores = scores + np.broadcast_to(bias, scores.shape)
    if alibi_slopes is not None:
        distance = np.abs(np.arange(keys) - np.arange(keys - queries, keys)[:, None])  # (Q,K)
        scores = scores - alibi_slopes[:, None, None] * distance.astype(scores.dtype)
    return scores


def softmax(logits: Array, sinks: Array | None) -> tuple[Array, Array]:
    """Weights (B,H,Q,K) and log-sum-exp (B,H,Q). A sink is one more logit, whose weight goes nowhere."""
    keys = logits.shape[-1]
    if sinks is not None:
        sink = np.broadcast_to(sinks.astype(logits.dtype)[:, None, None], (*logits.shape[:-1], 1))
        logits = np.concatenate([logits, sink], axis=-1)
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(top == -np.inf, 0, top)  # a row of no keys: -inf - -inf would be NaN
    exponentials = np.exp(logits - top)
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = np.where(logits == -np.inf, 0, exponentials / np.where(total == 0, 1, total))
    return weights[..., :keys], (top + np.log(total))[..., 0]


def product_of_seen(weights: Array, matrix: Array, allowed: Array) -> Array:
    """weights @ matrix, where a number that is not finite reaches only the rows that see it."""
    finite = np.isfinite(matrix)
    if finite.all():
        return weights @ matrix
    product = weights @ np.where(finite, matrix, 0)
    for n in np.flatnonzero(~finite.all(axis=(0, 1, 3))):
        reached = allowed[..., n, None] & ~finite[:, :, None, n]
        product = np.where(reached, product + weights[..., n, None] * matrix[:, :, None, n], product)
    return product
