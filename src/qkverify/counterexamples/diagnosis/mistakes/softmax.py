"""The softmax normalised or shifted wrongly, and log-sum-exps that are another quantity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import (
    Arguments,
    Array,
    Compute,
    Mistake,
    averaged,
    logits_of,
    output_of,
    with_sink,
)
from qkverify.problem.attention_problem import Problem
from qkverify.reference.groups import per_query_head
from qkverify.reference.softmax import largest, log_sum_exp


def _over_queries(shifted_by: int) -> Compute:
    """Weights normalised over the queries, their exponentials shifted by the largest score along an axis."""

    def compute(a: Arguments, p: Problem) -> Any:
        logits = logits_of(a)
        e = np.exp(logits - largest(logits, shifted_by))
        total = np.sum(e, axis=-2, keepdims=True)
        return averaged(a, e / np.where(total > 0, total, 1.0))

    return compute


def _peak(logits: Array) -> Array:
    peak = np.max(logits, axis=-1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(peak), peak, 0.0)


def _overflowing(shift: Callable[[Array, Array], Array], what: str) -> Compute:
    """Exponentials without the right maximum: as the reference where they stay in range, NaN or infinite where not."""

    def compute(a: Arguments, p: Problem) -> Any:
        plain, logits = logits_of(a), with_sink(a)
        huge = math.log(plain.precision.accumulate.huge)
        e = logits.value - shift(plain.value, logits.value)
        over = e > huge
        if what == "lse":
            return np.where(over.any(-1), np.inf, log_sum_exp(logits))
        e = np.where(over, np.inf, np.where(e < -huge, 0.0, np.exp(np.minimum(e, huge))))
        weights = (e / e.sum(-1, keepdims=True))[..., : plain.shape[-1]]
        value = per_query_head(a["value"], p.sizes["H"]).value
        return np.where(over.any(-1)[..., None], weights @ value, output_of(a))

    return compute


def _lse(of: Callable[[Any], Any]) -> Compute:
    return lambda a, p: of(log_sum_exp(with_sink(a)))


SOFTMAX: tuple[Mistake, ...] = (
    Mistake("attention with the weights divided by their sum over the queries instead of the keys", output=_over_queries(-1)),
    Mistake("attention with the softmax over the queries instead of the keys", output=_over_queries(-2)),
    Mistake("attention whose softmax does not subtract the maximum: large scores overflow",
            output=_overflowing(lambda keys, every: np.zeros(()), "output"),
            lse=_overflowing(lambda keys, every: np.zeros(()), "lse")),
    Mistake("attention whose maximum leaves out the sink: a large one overflows",
            output=_overflowing(lambda keys, every: _peak(keys), "output"),
            lse=_overflowing(lambda keys, every: _peak(keys), "lse"), needs=("sinks",)),
)  # fmt: skip


LOG_SUM_EXP: tuple[Mistake, ...] = (
    Mistake("the logarithm to base 2; the natural one is declared", lse=_lse(lambda x: x * (1.0 / math.log(2)))),
    Mistake("the log-sum-exp without the maximum added back",
            lse=lambda a, p: log_sum_exp(with_sink(a) - largest(with_sink(a), -1))),
    Mistake("the log-sum-exp with its sign flipped", lse=_lse(lambda x: -x)),
    Mistake("the sum of the exponentials without the logarithm", lse=_lse(np.exp)),
)  # fmt: skip
