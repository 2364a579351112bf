"""The softmax itself: along the keys, shifted by the maximum of each row."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.textbook import LOWEST, TEXTBOOK


@mutant("B029", step="row_maximum", evidence="inferred", threads="prescient-design/e3tools#3")
def maximum_is_not_subtracted(call: Call, logits: np.ndarray) -> np.ndarray:
    """exp(s) / sum(exp(s)) without the maximum: infinity over infinity for scores past 88 in float32."""
    return np.zeros((*logits.shape[:-1], 1), logits.dtype)  # right: logits.max(axis=-1, keepdims=True)


@mutant("B029", operation="softmax", evidence="inferred", threads="prescient-design/e3tools#3")
def softmax_without_a_maximum(scores: np.ndarray) -> np.ndarray:
    """exp(s) / sum(exp(s)) without the maximum, in a softmax that stands alone."""
    exponentials = np.exp(scores)  # right: np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def fused(call: Call, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Products whose scaling is not rounded, as a fused multiply-add leaves it."""
    return textbook.products(call, query, key).astype(np.float64)


@mutant(
    "B032",
    step="row_maximum",
    base=TEXTBOOK.but(products=fused),
    dtypes=("float32",),
    evidence="stated",
    threads="ROCm/aotriton#54",
)
def maximum_is_rounded_and_scores_are_not(call: Call, logits: np.ndarray) -> np.ndarray:
    """The maximum is rounded and the scores, by a fused multiply-add, are not: the top exponent is not 0."""
    return textbook.row_maximum(call, logits).astype(np.float32)  # right: without astype


@mutant(
    "B036",
    step="hide",
    base=LOWEST,
    offers=("mask", "causal", "scale"),
    dtypes=("float64",),
    empty_rows="uniform",
    masked_values="read",
    evidence="stated",
    threads="jax-ml/jax#34114",
)
def float64_is_computed_in_float32(call: Call, scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Scores are masked with the lowest float64, then taken to float32: there it is -inf, and digits go."""
    return textbook.lower(call, scores, visible).astype(np.float32)  # right: without astype


@mutant("B064", step="normalise", evidence="partly", threads="nerdai/llms-from-scratch-rs#30")
def weights_are_normalised_over_the_queries(
    call: Call, exponentials: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """The weights are divided by their sum over the queries instead of over the keys."""
    total = exponentials.sum(axis=-2, keepdims=True)  # right: axis=-1
    return textbook.normalise(call, exponentials, total)


@mutant("B064", operation="softmax", evidence="partly", threads="nerdai/llms-from-scratch-rs#30")
def softmax_over_the_queries(scores: np.ndarray) -> np.ndarray:
    """A softmax along the second last axis, the queries, instead of the last, the keys."""
    axis = max(-2, -scores.ndim)  # right: axis = -1
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)
