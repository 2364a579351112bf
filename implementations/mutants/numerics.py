"""Precision and range: what is rounded where, and what a mask is made of."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.textbook import LOWEST

BLOCK = 32


@mutant(
    "B034",
    step="hide",
    base=LOWEST,
    offers=("causal", "key_lengths", "scale"),
    empty_rows="uniform",
    masked_values="read",
    evidence="stated",
    threads="huggingface/transformers#17306 NVIDIA-NeMo/Automodel#2658 google/flax#1527 unit8co/darts#3087",
)
def two_lowest_numbers_are_added(call: Call, scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The causal and the padding mask each add the lowest finite number: together they overflow to -inf."""
    lowest = np.finfo(scores.dtype).min
    future = np.where(textbook.causal(call), 0, lowest) if call.causal else 0
    padding = np.where(textbook.lengths(call), 0, lowest) if call.key_lengths is not None else 0
    hidden = scores + future + padding  # right: scores + np.maximum(future + padding, lowest)
    return hidden.astype(scores.dtype)


@mutant(
    "B039",
    step="load_value",
    offers=("causal", "scale", "key_lengths"),
    evidence="stated",
    threads="NVIDIA/TransformerEngine#3248",
)
def quantisation_sees_the_future(call: Call) -> np.ndarray:
    """Values are quantised with one scale per block of keys: a future value changes how past ones round."""
    blocks = [call.value[:, :, start : start + BLOCK] for start in range(0, call.K, BLOCK)]
    axes = (2, 3)  # right: (), each number by itself
    quantised = [quantise(block, np.abs(block).max(axis=axes, keepdims=True)) for block in blocks]
    return np.concatenate([call.value[:, :, :0], *quantised], axis=2)


def quantise(block: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """`block` in steps of the last bit of `largest`: coarse for numbers that are much smaller."""
    step = np.spacing(np.where(largest == 0, 1, largest))
    return np.rint(block / step) * step
