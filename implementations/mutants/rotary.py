"""Rotary encodings: pairs of columns turned by position times frequency. x (B, H, L, D), positions (L,)."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.positions import angles, joined, pairs, rotary, rotate


@mutant("B109", operation="rotary", evidence="stated", threads="ml-explore/mlx#3795")
def one_token_forgets_the_batch(
    x: np.ndarray, positions: np.ndarray, *, layout: str = "interleaved"
) -> np.ndarray:
    """The fast path for one token leaves the batch out of the index: all entries get the first one's."""
    if x.shape[2] == 1:
        x = np.broadcast_to(x[:1], x.shape)  # right: x
    return rotary(x, positions, layout=layout)


@mutant(
    "B114",
    operation="rotary",
    evidence="stated",
    threads="huggingface/transformers#47328 raiyanyahya/how-to-train-your-gpt#6",
)
def tables_and_pairs_have_different_layouts(x: np.ndarray, positions: np.ndarray, *,
                                            layout: str = "interleaved") -> np.ndarray:  # fmt: skip
    """The table of angles is laid out for neighbours and the rotation for halves, or the other way round."""
    angle, other = angles(positions, x.shape[-1]), "half" if layout == "interleaved" else "interleaved"
    first, second = pairs(x, layout)
    table = joined(angle, angle, other)  # right: joined(angle, angle, layout)
    (angle_a, angle_b) = pairs(table, layout)
    turned = (
        first * np.cos(angle_a) - second * np.sin(angle_a),
        second * np.cos(angle_b) + first * np.sin(angle_b),
    )
    return joined(*turned, layout).astype(x.dtype)


@mutant("B117", operation="rotary", evidence="stated", threads="mlfoundations/open_lm#4")
def angle_comes_from_the_head(
    x: np.ndarray, positions: np.ndarray, *, layout: str = "interleaved"
) -> np.ndarray:
    """The axis of heads is taken for the sequence: every word of a head is turned by the head's number."""
    places = np.arange(x.shape[1])[:, None]  # right: positions[None, :]
    angle = np.stack([angles(row, x.shape[-1]) for row in np.broadcast_to(places, (x.shape[1], x.shape[2]))])
    return rotate(x, np.cos(angle), np.sin(angle), layout)


@mutant("A012", operation="rotary", evidence="inferred")
def memory_is_read_in_its_own_order(
    x: np.ndarray, positions: np.ndarray, *, layout: str = "interleaved"
) -> np.ndarray:
    """Tokens are read as they lie in memory: the heads of a projection seen through swapped axes are mixed up."""
    order = np.argsort([-step for step in x.strides[1:3]], kind="stable")
    flat = x.swapaxes(1, 2).reshape(x.shape) if order.tolist() == [1, 0] else x  # right: x
    return rotary(flat, positions, layout=layout)
