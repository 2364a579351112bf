"""The last tile of keys, which is rarely full."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.tiled import TILE, TILED


@mutant(
    "B041",
    step="inside",
    base=TILED,
    tile=TILE,
    evidence="stated",
    threads="pytorch/pytorch#169222 jax-ml/jax#27224 pytorch/pytorch#159247",
)
def last_tile_is_read_past_its_end(call: Call, columns: np.ndarray) -> np.ndarray:
    """The bounds of the last tile are not checked: what follows the keys in memory is attended to."""
    return np.ones_like(columns, bool)  # right: columns < call.K


@mutant(
    "B043",
    step="cap_then_hide",
    base=TILED,
    tile=TILE,
    offers=("softcap", "scale", "bias"),
    evidence="stated",
    threads="ggml-org/llama.cpp#29034",
)
def last_tile_is_hidden_before_the_softcap(call: Call, scores: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The columns past the last key get -inf before the softcap, which turns -inf into a finite score."""
    hidden = np.where(inside, scores, -np.inf)  # right: after the softcap
    return textbook.softcap(call, hidden)


@mutant(
    "B047",
    step="lengths",
    base=TILED,
    tile=TILE,
    offers=("key_lengths", "causal", "scale"),
    evidence="stated",
    threads="HKUSTDial/flash-sparse-attention#363",
)
def even_length_skips_the_lengths(call: Call) -> np.ndarray:
    """When the longest sequence fills whole tiles, the last tile of shorter ones is not masked either."""
    fast = call.K % TILE == 0
    used = -(-call.key_lengths // TILE) * TILE if fast else call.key_lengths  # right: call.key_lengths
    return call.columns < used[:, None, None, None]
