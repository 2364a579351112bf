"""Backward passes with one step wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import (
    MASKING,
    NO_MASK,
    Arguments,
    Compute,
    Mistake,
    logits_of,
    with_sink,
)
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import stored
from qkverify.reference.groups import per_key_head, per_query_head, summed_to
from qkverify.reference.scores import products
from qkverify.reference.softmax import largest, log_sum_exp


def _backward(*, delta: str = "weights", capped: bool = True, scaled: bool = True, signed: bool = True, group: str = "sum",
              bias: str = "sum", masked: bool = True, empty: str = "") -> Compute:  # fmt: skip
    """The reference's backward pass with one step changed; `empty` is what a row that sees no key makes NaN."""

    def compute(a: Arguments, p: Problem) -> dict[str, Any]:
        s, upstream = p.sizes, a["upstream"]
        logits, lse = logits_of(a), log_sum_exp(with_sink(a))[..., None]
        shift = np.where(lse > -np.inf, lse, 0.0)
        weights = np.exp((logits if masked else logits_of(a, **NO_MASK)) - shift)
        hollow = ~p.some_visible[..., None]
        weights = np.where(hollow, np.nan, weights) if empty == "weights" else weights
        d_weights = upstream @ np.swapaxes(per_query_head(a["value"], s["H"]), -1, -2)
        summed = np.exp(logits - largest(logits, -1)) if delta == "exponentials" else weights
        row = np.sum(summed * d_weights, axis=-1, keepdims=True)
        d_logits = weights * (d_weights if delta == "none" else d_weights - row)
        d_logits = np.where(hollow, np.nan, d_logits) if empty == "scores" else d_logits
        d_products = d_logits * a["scale"] if scaled else d_logits
        if not signed and p.scale is not None and p.scale < 0:
            d_products = -d_products
        if capped and p.softcap is not None and np.isfinite(p.softcap):
            cap = np.tanh(products(a["query"], a["key"], a["scale"]) / a["softcap"])
            d_products = d_products * (1.0 - cap * cap)
        by_input = {
            "query": stored(d_products @ per_query_head(a["key"], s["H"])),
            "key": _gathered(d_products, a["query"], p, group),
            "value": _gathered(weights, upstream, p, group),
        }
        if p.bias is not None:
            by_input["bias"] = _bias_gradient(d_logits, p, bias)
        return by_input

    return compute


def _gathered(rows: Any, columns: Any, p: Problem, group: str) -> Any:
    """The gradient of keys or values, (B,G,K,.): over a group summed, averaged, or of its first or last head."""
    if group == "sum":
        return stored(per_key_head(rows, columns, p.sizes["G"]))
    if group == "mean":
        return stored(per_key_head(rows, columns, p.sizes["G"]) * (1.0 / p.group))
    each = per_key_head(rows, columns, p.sizes["H"])
    return stored(each[:, 0 if group == "first" else p.group - 1 :: p.group])


def _bias_gradient(d_logits: Any, p: Problem, bias: str) -> Any:
    shape = np.asarray(p.bias).shape
    if bias == "sum":
        return stored(summed_to(stored(d_logits), shape))
    aligned = (1,) * (4 - len(shape)) + shape
    return stored(d_logits[tuple(slice(0, n) for n in aligned)].reshape(*shape))


OF_EMPTY_ROWS: tuple[Mistake, ...] = (
    Mistake("those where the scores of a query that sees no key get NaN, and with them its query and every key",
            gradients=_backward(empty="scores")),
    Mistake("those where the weights of a query that sees no key are NaN, exp(-inf - -inf), and with them all gradients",
            gradients=_backward(empty="weights")),
)  # fmt: skip

GRADIENTS: tuple[Mistake, ...] = (
    Mistake("those without delta, the row's sum of weight times gradient", gradients=_backward(delta="none")),
    Mistake("those with delta taken before the weights are normalised", gradients=_backward(delta="exponentials")),
    Mistake("those without the derivative of the softcap", gradients=_backward(capped=False), needs=("softcap",)),
    Mistake("those without the scale", gradients=_backward(scaled=False)),
    Mistake("those of a scale without its sign", gradients=_backward(signed=False)),
    Mistake("those of weights that are not masked again in the backward pass", gradients=_backward(masked=False), among=MASKING),
    Mistake("those where a key head gets the gradient of the first query head of its group, not the sum",
            gradients=_backward(group="first")),
    Mistake("those where a key head gets the gradient of the last query head of its group, not the sum",
            gradients=_backward(group="last")),
    Mistake("those where a key head gets the mean over its group, not the sum", gradients=_backward(group="mean")),
    Mistake("those where a broadcast bias gets the gradient of its first place, not the sum over all",
            gradients=_backward(bias="first"), needs=("bias",)),
    *OF_EMPTY_ROWS,
)  # fmt: skip
