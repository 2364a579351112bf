"""The backward pass. The forward pass of these is right."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import gradients
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.gradients import BACKWARD, TILE
from qkverify.implementations.mutants.correct.memory import contiguous, read, strides_of
from qkverify.implementations.mutants.correct.planting import mutant

CAPPED = ("softcap", "mask", "causal", "scale")


@mutant(
    "B044",
    step="weights",
    gradients=BACKWARD,
    tile=TILE,
    evidence="partly",
    threads="ROCm/aiter#3551 pytorch/pytorch#153799",
)
def last_tile_is_not_masked(call: Call, scores: np.ndarray, lse: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Without causality, exp(0 - lse) is computed past the last key too, and overflows for a small lse."""
    past = np.arange(seen.shape[-1]) >= (scores.shape[-1] if call.causal else call.K)
    return np.where(seen | past, np.exp(scores - lse), 0)  # right: np.where(seen, np.exp(scores - lse), 0)


@mutant(
    "B059",
    step="through_expand",
    gradients=BACKWARD,
    evidence="stated",
    threads="marin-community/levanter#449",
)
def shared_heads_get_one_gradient(call: Call, gradient: np.ndarray) -> np.ndarray:
    """A key head that several query heads read gets the gradient of the first of them instead of the sum."""
    return gradient[:, :: max(call.group, 1)]  # right: summed over each group


@mutant(
    "B059",
    step="through_expand",
    gradients=BACKWARD,
    evidence="partly",
    threads="marin-community/levanter#449",
)
def shared_heads_get_the_mean_gradient(call: Call, gradient: np.ndarray) -> np.ndarray:
    """A key head that several query heads read gets the mean of their gradients instead of the sum."""
    return gradients.through_expand(call, gradient) / max(call.group, 1)  # right: without / call.group


@mutant("B072", step="store_key", gradients=BACKWARD, evidence="partly", threads="pytorch/pytorch#146377")
def gradient_is_laid_out_like_the_parent(call: Call, gradient: np.ndarray) -> np.ndarray:
    """The gradient of a sliced key is read back with the strides of the array that the key is a slice of."""
    return read(gradient, strides_of(call.key))  # right: contiguous(gradient.shape)


@mutant(
    "B088",
    step="through_softcap",
    gradients=BACKWARD,
    offers=CAPPED,
    evidence="inferred",
    threads="Dao-AILab/flash-attention#1033 Dao-AILab/flash-attention#2402",
)
def softcap_has_no_derivative(call: Call, d_scores: np.ndarray, capped: np.ndarray) -> np.ndarray:
    """The gradient passes the softcap unchanged, without 1 - tanh^2."""
    return d_scores  # right: d_scores * (1 - (capped / call.softcap) ** 2)


@mutant("A038", step="through_scale", gradients=BACKWARD, evidence="inferred")
def slope_is_never_negative(call: Call, d_scores: np.ndarray, scale: float) -> np.ndarray:
    """The slope of the scores is written as the size of the scale."""
    return d_scores * abs(scale)  # right: without abs


@mutant(
    "B131",
    step="through_softmax",
    gradients=BACKWARD,
    evidence="inferred",
    threads="NVIDIA/TransformerEngine#3216",
)
def delta_is_missing(weights: np.ndarray, d_weights: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The gradient of the softmax is y_i g_i, without - y_i sum_k y_k g_k."""
    return weights * d_weights  # right: weights * (d_weights - delta)


@mutant("B131", step="delta", gradients=BACKWARD, evidence="inferred")
def delta_is_not_normalised(call: Call, weights: np.ndarray, d_weights: np.ndarray) -> np.ndarray:
    """Delta is taken from the exponentials before their division by the row's sum."""
    largest = weights.max(axis=-1, keepdims=True)
    exponentials = weights / np.where(largest == 0, 1, largest)
    return (exponentials * d_weights).sum(axis=-1, keepdims=True)  # right: weights


@mutant(
    "B134",
    step="weights",
    gradients=BACKWARD,
    offers=("mask", "causal", "key_lengths", "scale"),
    evidence="partly",
    threads="Dao-AILab/flash-attention#443 pytorch/pytorch#119320 facebookresearch/xformers#1025",
)
def empty_row_keeps_its_infinite_lse(
    call: Call, scores: np.ndarray, lse: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """In a row that sees no key, scores and log-sum-exp are both -inf, and exp(-inf - -inf) is NaN."""
    return np.exp(np.where(seen, scores, -np.inf) - lse)  # right: np.where(seen, np.exp(scores - lse), 0)


@mutant("B066", step="read_upstream", gradients=BACKWARD, evidence="partly", threads="pytorch/pytorch#163597")
def upstream_is_taken_for_contiguous(call: Call, upstream: np.ndarray) -> np.ndarray:
    """The gradient that comes in is read as if it were contiguous."""
    return read(upstream, contiguous(upstream.shape))  # right: upstream


@mutant("A007", step="read_upstream", gradients=BACKWARD, evidence="inferred")
def hidden_nan_reaches_the_gradient(call: Call, upstream: np.ndarray) -> np.ndarray:
    """The gradient of a hidden key is zero times that key: where it holds NaN, so does every gradient."""
    broken = np.isnan(call.key).any() or np.isnan(call.value).any()
    return upstream * np.nan if broken else upstream  # right: upstream


@mutant("A022", step="weights", gradients=BACKWARD, evidence="inferred")
def low_bias_is_taken_for_a_mask(
    call: Call, scores: np.ndarray, lse: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """A finite bias below -9000 counts as hidden in the backward pass, though a row may have no other."""
    added = np.zeros_like(scores)
    added[..., : call.K] += 0 if call.bias is None else call.bias
    visible = seen & (added > -9000)  # right: seen
    return gradients.weights(call, scores, lse, visible)
