"""Sizes: keys and values are as many as each other, and values may be shorter or longer than keys."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.call import Call, uninitialised
from qkverify.implementations.mutants.correct.planting import mutant


@mutant("B049", step="store", evidence="stated", threads="pytorch/pytorch#176767")
def output_has_the_key_size(call: Call, output: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The output is allocated with the size of the keys; past the size of the values nothing is written."""
    stored = uninitialised((call.B, call.H, call.Q, call.D), call.dtype)  # right: call.E instead of call.D
    stored[..., : call.E] = output[..., : call.D]
    return stored


@mutant("B052", step="prepare", offers=(), evidence="stated", threads="pytorch/pytorch#193728")
def keys_are_counted_by_the_values(call: Call) -> Call:
    """The number of keys is taken from the values: with fewer keys, what follows them in memory is read."""
    columns = np.arange(call.value.shape[2])  # right: raise for call.value.shape[2] != call.key.shape[2]
    return call.but(key=call.key[:, :, columns % max(call.K, 1)])
