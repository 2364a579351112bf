"""The softcap: c tanh(s / c), after the scale, before bias and mask."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant


@mutant(
    "B087",
    step="prepare",
    offers=("softcap", "mask", "bias", "causal", "scale"),
    evidence="stated",
    threads="kekzl/imp#688 sgl-project/sgl-kernel-xpu#491",
)
def causal_path_forgets_the_softcap(call: Call) -> Call:
    """The causal path takes the softcap and does not pass it on."""
    return textbook.prepare(call.but(softcap=None if call.causal else call.softcap))  # right: call


@mutant("A002", step="softcap", offers=("softcap", "mask", "bias", "causal", "scale"), evidence="inferred")
def infinite_cap_multiplies_zero(call: Call, scores: np.ndarray) -> np.ndarray:
    """An infinite cap, which caps nothing, is computed with: infinity times tanh(0) is NaN."""
    return (
        scores if call.softcap is None else call.softcap * np.tanh(scores / call.softcap)
    )  # right: only a finite cap


@mutant("A003", step="softcap", offers=("softcap", "mask", "bias", "causal", "scale"), evidence="inferred")
def cap_cuts_instead_of_bending(call: Call, scores: np.ndarray) -> np.ndarray:
    """Scores are cut off at the cap: the same far from it and at it, another number on the way."""
    return (
        scores if call.softcap is None else np.clip(scores, -call.softcap, call.softcap)
    )  # right: c tanh(s / c)


@mutant("A018", step="softcap", offers=("softcap", "mask", "bias", "causal", "scale"), evidence="inferred")
def cap_is_held_in_half_precision(call: Call, scores: np.ndarray) -> np.ndarray:
    """The cap is kept as a float16: one above 65,504 is infinite there, and infinity times tanh(0) is NaN."""
    if call.softcap is None or not np.isfinite(call.softcap):
        return scores
    cap = scores.dtype.type(np.float16(call.softcap))  # right: call.softcap
    return cap * np.tanh(scores / cap)
