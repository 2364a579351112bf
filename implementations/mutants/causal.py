"""Causality: query i sees keys up to i + K - Q."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.tiled import TILE, TILED


@mutant(
    "B007",
    step="causal",
    evidence="stated",
    threads="tinygrad/tinygrad#15949 hyprstream/hyprstream#1521 gittensor-ai-lab/sparkinfer#3 "
    "Dao-AILab/flash-attention#351 pytorch/pytorch#110144",
)
def past_is_hidden_when_there_are_more_keys(call: Call) -> np.ndarray:
    """The mask is a lower triangle from the top left corner, so with a cache (K > Q) the past is hidden."""
    rows = np.arange(call.Q)[:, None]  # right: + call.K - call.Q
    return call.columns <= rows


@mutant(
    "B009",
    step="causal",
    evidence="stated",
    threads="microsoft/onnxruntime#29020 microsoft/onnxruntime#29050",
)
def alignment_depends_on_the_path(call: Call) -> np.ndarray:
    """The path for one query aligns bottom-right, the path for several aligns top-left."""
    offset = call.K - call.Q if call.Q == 1 else 0  # right: call.K - call.Q
    return call.columns <= np.arange(call.Q)[:, None] + offset


@mutant(
    "B011",
    step="prepare",
    evidence="stated",
    threads="huggingface/transformers#48769 huggingface/transformers#48770 keras-team/keras#23040",
)
def a_mask_switches_causality_off(call: Call) -> Call:
    """When a mask is given it is taken to contain causality, and the causal flag is dropped."""
    return textbook.prepare(call.but(causal=call.causal and call.mask is None))  # right: call


@mutant("B014", step="causal", evidence="stated", threads="Dao-AILab/flash-attention#2528")
def rows_are_divided_by_the_group(call: Call) -> np.ndarray:
    """The row is divided by the number of query heads per key head, as if heads were packed into rows."""
    rows = np.arange(call.Q)[:, None] // call.group  # right: without // call.group
    return call.columns <= rows + call.K - call.Q


@mutant(
    "B015",
    step="causal",
    base=TILED,
    tile=TILE,
    evidence="stated",
    threads="tenstorrent/tt-metal#48700 tenstorrent/tt-metal#41215",
)
def own_tile_is_seen_whole(call: Call) -> np.ndarray:
    """Causality is enforced tile by tile: a query sees the whole tile that it stands in."""
    return call.columns <= call.rows // TILE * TILE + TILE - 1  # right: <= call.rows
