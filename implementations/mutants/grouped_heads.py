"""Which key/value head a query head reads: h // (H // G)."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant


@mutant("B054", step="expand", evidence="stated", threads="ekzhang/jax-js#180 onnx/onnx#7274")
def key_heads_are_tiled(call: Call, array: np.ndarray) -> np.ndarray:
    """Query head h reads key head h % G: the heads are tiled instead of repeated."""
    return np.tile(array, (1, call.group, 1, 1))  # right: np.repeat(array, call.group, axis=1)


@mutant("B056", step="store", evidence="stated", threads="karpathy/llm.c#795")
def flat_index_is_taken_apart_wrongly(call: Call, output: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Head and row are taken from a flat index with each other's divisor."""
    flat = np.arange(call.H * call.Q)
    head, row = flat % call.H, flat // call.H  # right: flat // call.Q, flat % call.Q
    return output[:, head, row].reshape(output.shape)


@mutant(
    "B057",
    step="prepare",
    offers=("causal", "scale", "window"),
    evidence="stated",
    threads="ByteDance-Seed/VeOmni#162",
)
def keys_are_repeated_along_the_sequence(call: Call) -> Call:
    """Heads are repeated along the wrong axis, the sequence: every key is there several times."""
    axis = 2  # right: 1
    repeated = {name: np.repeat(getattr(call, name), call.group, axis) for name in ("key", "value")}
    return textbook.prepare(call.but(**repeated))
