"""Sliding windows: query i sees keys within [i - left, i + right], both ends included."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant

OFFERS = ("window", "causal", "mask", "scale")


@mutant(
    "B090",
    step="prepare",
    offers=(*OFFERS, "key_lengths"),
    evidence="stated",
    threads="jax-ml/jax#32300 jax-ml/jax#32357",
)
def early_return_forgets_the_window(call: Call) -> Call:
    """Without mask, causality and lengths the scores are returned early, before the window."""
    plain = call.mask is None and not call.causal and call.key_lengths is None
    return textbook.prepare(call.but(window=None if plain else call.window))  # right: call


@mutant("B092", step="window", offers=OFFERS, evidence="stated", threads="proger/hippogriff#7")
def left_edge_is_negative_and_means_no_limit(call: Call) -> np.ndarray:
    """The left edge is passed on with a minus sign, and a negative edge means that there is none."""
    left, right = call.window
    left = None if left is None or -left < 0 else left  # right: left is None
    return textbook.window(call.but(window=(left, right)))


@mutant(
    "B093",
    step="window",
    offers=(*OFFERS, "key_lengths"),
    evidence="partly",
    threads="NVIDIA/TransformerEngine#1281",
)
def window_and_causality_count_from_different_ends(call: Call) -> np.ndarray:
    """Causality counts from the end of the key array, the window from the end of each sequence in it.

    The thread has the two exchanged; which is right is a matter of declaration, that they agree is not.
    """
    if call.key_lengths is None:
        return textbook.window(call)
    ends = call.key_lengths[:, None, None, None]  # right: call.K
    places = np.arange(call.Q)[:, None] + ends - call.Q  # (B, 1, Q, 1)
    left, right = (np.inf if side is None else side for side in call.window)
    return (call.columns >= places - left) & (call.columns <= places + right)
