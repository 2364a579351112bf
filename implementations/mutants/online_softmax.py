"""The running maximum and sums of the softmax over tiles."""

from __future__ import annotations

import time

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.tiled import TILE, TILED


@mutant(
    "B040",
    step="rescale",
    base=TILED,
    tile=TILE,
    evidence="stated",
    threads="deepseek-ai/FlashMLA#177 tile-ai/TileOPs#1511",
)
def rescale_has_the_wrong_sign(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """When the maximum rises, the sums so far are multiplied by exp(new - old)."""
    return np.where(np.isneginf(old), 0, np.exp(new - old))  # right: np.exp(old - new)


@mutant("B040", step="carry_output", base=TILED, tile=TILE, evidence="inferred")
def output_is_not_rescaled(carried: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """When the maximum rises, the sum of weights is rescaled and the sum of weighted values is not."""
    return carried  # right: carried * factor


@mutant("B040", step="carry_total", base=TILED, tile=TILE, evidence="inferred")
def total_is_not_rescaled(carried: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """When the maximum rises, the sum of weighted values is rescaled and the sum of weights is not."""
    return carried  # right: carried * factor


@mutant(
    "B141",
    step="tile_weights",
    base=TILED,
    tile=TILE,
    evidence="stated",
    threads="ggml-org/llama.cpp#13438 Dao-AILab/flash-attention#359 Dao-AILab/flash-attention#2033 "
    "pengcuo/FlashMLA-ETAP#3 flashinfer-ai/flashinfer#1559",
)
def values_sometimes_meet_the_last_weights(
    call: Call, weights: np.ndarray, previous: np.ndarray | None
) -> np.ndarray:
    """A barrier is missing: now and then the values of a tile meet the weights of the tile before."""
    late = time.perf_counter_ns() // 100 % 4 == 0  # right: never
    return previous if late and previous is not None else weights
