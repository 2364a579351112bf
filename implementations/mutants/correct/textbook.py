"""Textbook attention in steps: what every mutant is, but for one step.

Each function below is one step, right. `Textbook` holds them in the order in which they are taken and runs
them; `TEXTBOOK.but(scale=...)` is the same attention with one step exchanged. Keys that a query does not see
are not read: NaN in them stays there. Rows that see no key are zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call


def prepare(call: Call) -> Call:
    """The call that is computed: sizes checked, nothing changed."""
    q, k, v = call.query.shape, call.key.shape, call.value.shape
    if (q[0], q[3]) != (k[0], k[3]) or k[:3] != v[:3] or q[1] != k[1] * call.group:
        raise ValueError(f"sizes do not match: query {q}, key {k}, value {v}")
    for option in (call.mask, call.bias):
        if option is not None and np.broadcast_shapes(option.shape, (call.B, call.H, call.Q, call.K)) != (
            *q[:3],
            k[2],
        ):
            raise ValueError(f"{option.shape} does not broadcast to {(*q[:3], k[2])}")
    return call


def load_query(call: Call) -> np.ndarray:
    return call.query


def load_key(call: Call) -> np.ndarray:
    return call.key


def load_value(call: Call) -> np.ndarray:
    return call.value


def expand(call: Call, array: np.ndarray) -> np.ndarray:
    """(B, G, K, .) -> (B, H, K, .): query head h reads key/value head h // group."""
    return np.repeat(array, call.group, axis=1)


def scale(call: Call) -> float:
    return call.scale if call.scale is not None else max(call.D, 1) ** -0.5


def products(call: Call, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return query @ key.swapaxes(-1, -2)  # (B, H, Q, K)


def softcap(call: Call, scores: np.ndarray) -> np.ndarray:
    """c tanh(s / c); an infinite cap is none."""
    capped = call.softcap is not None and np.isfinite(call.softcap)
    return call.softcap * np.tanh(scores / call.softcap) if capped else scores


def slopes(call: Call) -> np.ndarray:
    return call.alibi_slopes.astype(call.dtype)[:, None, None]  # (H, 1, 1)


def add_bias(call: Call, scores: np.ndarray) -> np.ndarray:
    return scores if call.bias is None else scores + call.bias


def causal(call: Call) -> np.ndarray:
    return call.columns <= call.rows  # (Q, K)


def window(call: Call) -> np.ndarray:
    """Keys within [i - left, i + right], both ends included; None is no limit."""
    left, right = call.window
    near = np.ones((call.Q, call.K), bool)
    near &= True if left is None else call.columns >= call.rows - left
    return near & (True if right is None else call.columns <= call.rows + right)


def mask(call: Call) -> np.ndarray:
    return call.mask


def lengths(call: Call) -> np.ndarray:
    return call.columns < call.key_lengths[:, None, None, None]  # (B, 1, 1, K)


def hide(call: Call, scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return np.where(visible, scores, -np.inf)


def row_maximum(call: Call, logits: np.ndarray) -> np.ndarray:
    """(B, H, Q, 1); 0 for a row that sees nothing, because -inf - -inf is NaN."""
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(top), top, 0).astype(logits.dtype)


def normalise(call: Call, exponentials: np.ndarray, total: np.ndarray) -> np.ndarray:
    return exponentials / np.where(total == 0, 1, total)


def log_sum_exp(call: Call, top: np.ndarray, total: np.ndarray) -> np.ndarray:
    return (top + np.log(total))[..., 0]  # (B, H, Q); -inf for a row that sees nothing


def weighted_sum(weights: np.ndarray, value: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """weights @ value, where NaN and infinity in `value` reach only the rows that see them."""
    finite = np.isfinite(value)
    output = weights @ np.where(finite, value, 0)
    reached = seen.astype(weights.dtype) @ (~finite).astype(weights.dtype) > 0  # (B, H, Q, E)
    if not reached.any():
        return output
    terms = np.where(seen[..., None], weights[..., None] * value[:, :, None], 0)  # (B, H, Q, K, E)
    return np.where(reached, terms.sum(axis=-2), output)


def store(call: Call, output: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The output as it is handed out."""
    return output


Step = Callable[..., Any]


@dataclass(frozen=True)
class Textbook:
    """Every step of an attention call; calling it takes them in order."""

    prepare: Step = prepare
    load_query: Step = load_query
    load_key: Step = load_key
    load_value: Step = load_value
    expand: Step = expand
    scale: Step = scale
    products: Step = products
    softcap: Step = softcap
    slopes: Step = slopes
    add_bias: Step = add_bias
    causal: Step = causal
    window: Step = window
    mask: Step = mask
    lengths: Step = lengths
    hide: Step = hide
    row_maximum: Step = row_maximum
    normalise: Step = normalise
    log_sum_exp: Step = log_sum_exp
    store: Step = store

    def but(self, **steps: Step) -> Textbook:
        """The same attention with some steps exchanged."""
        return dataclasses.replace(self, **steps)

    def visible(self, call: Call) -> np.ndarray:
        """(B, H, Q, K): which keys each query sees."""
        seen = np.ones((call.B, call.H, call.Q, call.K), bool)
        for given, step in ((call.causal, self.causal), (call.window, self.window), (call.mask, self.mask),
                            (call.key_lengths, self.lengths)):  # fmt: skip
            if given is not None and given is not False:
                seen = seen & step(call)
        return seen

    def bias(self, call: Call, scores: np.ndarray) -> np.ndarray:
        """Bias and ALiBi added to the scores."""
        if call.alibi_slopes is not None:
            scores = scores - self.slopes(call) * np.abs(call.rows - call.columns).astype(call.dtype)
        return self.add_bias(call, scores)

    def logits(self, call: Call, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """(B, H, Q, K): scaled, capped, biased and masked scores; -inf where a key is not seen."""
        scores = self.softcap(call, self.products(call, query, key) * self.scale(call))
        return self.hide(call, self.bias(call, scores), self.visible(call))

    def softmax(self, call: Call, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (B, H, Q, K), log-sum-exp (B, H, Q). A sink is one more logit; its weight goes nowhere."""
        if call.sinks is not None:
            sink = np.broadcast_to(call.sinks.astype(logits.dtype)[:, None, None], (*logits.shape[:3], 1))
            logits = np.concatenate([logits, sink], axis=-1)
        top = self.row_maximum(call, logits)
        exponentials = np.exp(logits - top)
        total = exponentials.sum(axis=-1, keepdims=True)
        weights = self.normalise(call, exponentials, total)
        return weights[..., : call.K], self.log_sum_exp(call, top, total)

    def __call__(self, call: Call) -> Any:
        call = self.prepare(call)
        logits = self.logits(call, self.load_query(call), self.expand(call, self.load_key(call)))
        weights, lse = self.softmax(call, logits)
        seen = ~np.isneginf(logits)
        output = weighted_sum(weights, self.expand(call, self.load_value(call)), seen).astype(call.dtype)
        output = self.store(call, output, seen)
        return (output, lse.astype(call.dtype)) if call.return_lse else output


TEXTBOOK = Textbook()


def lower(call: Call, scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Invisible keys get the lowest finite number; a row that sees nothing becomes the mean."""
    return np.where(visible, scores, np.finfo(scores.dtype).min)


def plain_maximum(call: Call, logits: np.ndarray) -> np.ndarray:
    return (
        logits.max(axis=-1, keepdims=True) if call.K else np.zeros_like(logits, shape=(*logits.shape[:-1], 1))
    )


# The style of libraries that mask with the lowest finite number. It needs no care for empty rows and declares
# empty_rows="uniform"; every value is multiplied, by zero if need be, so NaN in a masked value is read.
LOWEST = Textbook(hide=lower, row_maximum=plain_maximum)
