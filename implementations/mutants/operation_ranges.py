"""The operations beside attention outside of what is usual: NaN, negative positions, sizes past a buffer or a vector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qkverify.implementations.mutants.correct import layers
from qkverify.implementations.mutants.correct import positions as correct
from qkverify.implementations.mutants.correct.planting import mutant

Array = np.ndarray
Weights = Mapping[str, Array]


@mutant("L042", operation="softmax", evidence="inferred")
def nan_is_removed_from_the_probabilities(scores: Array) -> Array:
    """Rows without any score are guarded by nan_to_num, which hides every other NaN as well."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.nan_to_num(weights / weights.sum(-1, keepdims=True))  # right: without nan_to_num


@mutant("L044", operation="rotary", evidence="inferred")
def negative_positions_count_as_zero(x: Array, positions: Array, *, layout: str = "interleaved") -> Array:
    """Positions are clipped to what a table has."""
    return correct.rotary(x, np.maximum(positions, 0), layout=layout)  # right: positions


@mutant("L047", operation="feed_forward", evidence="inferred")
def relu_eats_nan(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """A relu that asks whether a number is positive turns NaN into zero."""
    inner = x @ w_1 + b_1
    return np.where(inner > 0, inner, 0) @ w_2 + b_2  # right: np.maximum(inner, 0)


@mutant("L051", operation="decoder_layer", evidence="inferred")
def self_attention_is_told_by_its_lengths(
    x: Array, memory: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5
) -> Array:
    """Attention between equally many tokens is taken for self-attention and masked causally."""

    def cross(y: Array, memory: Array, weights: Weights, heads: int, seen: Array, prefix: str) -> Array:
        same = y.shape == memory.shape  # right: False
        past = np.tri(y.shape[1], dtype=bool) if same else seen
        return layers.attend(y, memory, weights, heads, past, prefix)

    return layers.decoder_layer(x, memory, weights, heads=heads, norm_first=norm_first, eps=eps, cross=cross)


@mutant("L052", operation="rotary", evidence="inferred")
def pairs_past_the_last_full_vector_are_not_turned(
    x: Array, positions: Array, *, layout: str = "interleaved"
) -> Array:
    """Eight pairs at a time; of more than eight the rest that fills no vector is copied as it is."""
    angle = correct.angles(positions, x.shape[-1])
    pairs = angle.shape[-1]
    angle[..., pairs // 8 * 8 if pairs > 8 else pairs :] = 0  # right: without this line
    return correct.rotate(x, np.cos(angle), np.sin(angle), layout)


@mutant("L053", operation="feed_forward", evidence="inferred")
def every_shard_adds_the_last_bias(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """From 32 hidden numbers on the network is cut in two, and the sum of both parts has b_2 twice."""
    half = w_1.shape[1] // 2 if w_1.shape[1] >= 32 else 0
    parts = [slice(0, half), slice(half, None)] if half else [slice(None)]
    return sum(layers.feed_forward(x, w_1[:, p], b_1[p], w_2[p], b_2) for p in parts)  # right: b_2 once
