"""What a call leaves behind: nothing. Its arguments are the caller's."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.gradients import BACKWARD
from qkverify.implementations.mutants.correct.planting import mutant


@mutant("B142", step="prepare", evidence="stated", threads="flashinfer-ai/flashinfer#2084")
def query_is_scaled_in_place(call: Call) -> Call:
    """The scale is multiplied into the caller's own query."""
    scaled = call.query  # right: call.query.copy()
    scaled *= textbook.scale(call)
    return textbook.prepare(call.but(query=scaled, scale=1.0))


@mutant("A006", step="store_key", gradients=BACKWARD, evidence="inferred")
def backward_clears_the_callers_key(call: Call, gradient: np.ndarray) -> np.ndarray:
    """The backward pass reuses the memory of the key, which it needs no more, for its own sums."""
    call.key[...] = gradient  # right: a buffer of its own
    return gradient


WORKSPACES: dict[tuple[tuple[int, ...], str], np.ndarray] = {}


@mutant("A017", step="store", evidence="inferred")
def result_is_a_workspace(call: Call, output: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The result is written to a buffer that is kept for its shape: the next call of that shape overwrites it."""
    kept = WORKSPACES.setdefault((output.shape, output.dtype.name), np.empty_like(output))
    kept[...] = output
    return kept  # right: output
