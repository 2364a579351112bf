"""What the mutants are without their bugs: the same steps, none exchanged."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct import multi_head, positions
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.gradients import BACKWARD
from qkverify.implementations.mutants.correct.planting import control, register
from qkverify.implementations.mutants.correct.split import SPLIT
from qkverify.implementations.mutants.correct.textbook import LOWEST, TEXTBOOK
from qkverify.implementations.mutants.correct.tiled import TILE, TILED


@control(backward=BACKWARD)
def textbook(call: Call) -> Any:
    """The whole score matrix."""
    return TEXTBOOK(call)


@control(tile=TILE)
def tiled(call: Call) -> Any:
    """Tiles of keys with a running maximum."""
    return TILED(call)


@control()
def split(call: Call) -> Any:
    """Two halves of the keys, merged by their log-sum-exp."""
    return SPLIT(call)


# A bias of -inf would leave a row without any finite score, so a bias is not offered; nor are sinks.
@control(
    offers=("mask", "causal", "window", "scale", "softcap", "key_lengths"),
    empty_rows="uniform",
    masked_values="read",
)
def lowest(call: Call) -> Any:
    """Invisible keys get the lowest finite number."""
    return LOWEST(call)


def softmax(scores: np.ndarray) -> np.ndarray:
    """The softmax of the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


register(softmax, "control-softmax", operation="softmax")


def embedding(
    tokens: np.ndarray, table: np.ndarray, *, padding: np.ndarray | None = None, layout: str = "interleaved"
) -> np.ndarray:
    """Scaled words plus the encoding of their positions."""
    return positions.embedding(tokens, table, at=positions.places(tokens, padding), layout=layout)


register(multi_head.multi_head_attention, "control-multi-head", operation="multi_head_attention")
register(positions.positional_encoding, "control-positions", operation="positional_encoding")
register(positions.rotary, "control-rotary", operation="rotary")
register(positions.rotary_pair, "control-rotary-pair", operation="rotary_pair")
register(embedding, "control-embedding", operation="embedding")
