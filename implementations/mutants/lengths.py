"""Padding: keys at and past a sequence's length are not there."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant

OFFERS = ("key_lengths", "causal", "scale")
PAGE = 16


@mutant("B100", step="prepare", offers=OFFERS, evidence="stated", threads="jax-ml/jax#23349")
def lengths_are_accepted_and_ignored(call: Call) -> Call:
    """The argument is there, and nothing reads it."""
    return textbook.prepare(call.but(key_lengths=None))  # right: call


@mutant("B112", step="lengths", offers=OFFERS, evidence="inferred", threads="tenstorrent/tt-metal#41215")
def lengths_are_rounded_up_to_a_page(call: Call) -> np.ndarray:
    """Keys that share a page with the last valid one are read."""
    valid = -(-call.key_lengths // PAGE) * PAGE  # right: call.key_lengths
    return call.columns < valid[:, None, None, None]
