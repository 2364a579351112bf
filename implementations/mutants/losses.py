"""Cross entropy with smoothed labels: what the target is, and what is subtracted from the softmax."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct import layers
from qkverify.implementations.mutants.correct.layers import cross_entropy_vjp
from qkverify.implementations.mutants.correct.planting import mutant

LOSS = "cross_entropy"
Array = np.ndarray


def whole_smoothing_is_left_on_the_target(
    targets: Array, classes: int, smoothing: float, dtype: Any
) -> Array:
    """1 on the target and smoothing / C on the others: the parts sum to more than one."""
    kept = 1 - smoothing / classes  # right: 1 - smoothing
    return (kept * np.eye(classes)[targets] + smoothing / classes).astype(dtype)


def target_pays_twice(targets: Array, classes: int, smoothing: float, dtype: Any) -> Array:
    """The target loses its own share of the smoothing once more: the parts sum to less than one."""
    kept = 1 - smoothing - smoothing / classes  # right: 1 - smoothing
    return (kept * np.eye(classes)[targets] + smoothing / classes).astype(dtype)


def one_class_fewer(targets: Array, classes: int, smoothing: float, dtype: Any) -> Array:
    """1 - smoothing on the target, smoothing / (C - 1) on each of the others: another distribution."""
    kept = 1 - smoothing * classes / (classes - 1)  # right: 1 - smoothing
    return (kept * np.eye(classes)[targets] + smoothing / (classes - 1)).astype(dtype)


@mutant("L020", operation=LOSS, evidence="stated", threads="ildoonet/pytorch-randaugment#30",
        vjp=partial(cross_entropy_vjp, target=whole_smoothing_is_left_on_the_target))  # fmt: skip
def smoothing_is_added_and_not_taken(scores: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """The target keeps 1 where it should keep 1 - smoothing; gradient likewise."""
    return layers.cross_entropy(
        scores, targets, smoothing=smoothing, target=whole_smoothing_is_left_on_the_target
    )


@mutant("L021", operation=LOSS, evidence="stated", threads="eladhoffer/utils.pytorch#14",
        vjp=partial(cross_entropy_vjp, target=target_pays_twice))  # fmt: skip
def smoothing_is_taken_twice(scores: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """The target loses smoothing and its own share of it; gradient likewise."""
    return layers.cross_entropy(scores, targets, smoothing=smoothing, target=target_pays_twice)


@mutant("L022", operation=LOSS, evidence="stated", threads="fastai/fastai#1814",
        vjp=partial(cross_entropy_vjp, target=one_class_fewer))  # fmt: skip
def smoothing_is_spread_over_the_others(scores: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """The share of each class is smoothing / (C - 1), and the target has none; gradient likewise."""
    return layers.cross_entropy(scores, targets, smoothing=smoothing, target=one_class_fewer)


@mutant("L023", operation=LOSS, evidence="stated", vjp=cross_entropy_vjp,
        threads="bowang-lab/Transformer-GCN-QA#32 tflearn/tflearn#562 lansinuote/Huggingface_Toturials#6")  # fmt: skip
def softmax_is_taken_twice(scores: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """The loss, which begins with a softmax, is given probabilities."""
    twice = np.exp(layers.log_softmax(scores))  # right: scores
    return layers.cross_entropy(twice, targets, smoothing=smoothing)


@mutant("L024", operation=LOSS, evidence="inferred", vjp=cross_entropy_vjp)
def logarithm_is_not_shifted(scores: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """The exponentials are summed as they are, which overflows."""

    def logarithms(scores: Array) -> Array:
        shift = 0  # right: scores.max(-1, keepdims=True)
        return scores - shift - np.log(np.exp(scores - shift).sum(-1, keepdims=True))

    return layers.cross_entropy(scores, targets, smoothing=smoothing, logarithms=logarithms)
