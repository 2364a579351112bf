"""Attention sinks: one more logit per head that takes weight and gives nothing."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant

OFFERS = ("sinks", "mask", "causal", "scale", "return_lse")


@mutant(
    "B129",
    step="row_maximum",
    offers=OFFERS,
    lse="natural",
    evidence="stated",
    threads="Dao-AILab/flash-attention#2752",
)
def sink_is_not_in_the_maximum(call: Call, logits: np.ndarray) -> np.ndarray:
    """The maximum is taken over the keys only, so exp(sink - maximum) overflows for a large sink."""
    return textbook.row_maximum(call, logits[..., : call.K])  # right: logits


@mutant(
    "B130",
    step="prepare",
    offers=OFFERS,
    lse="natural",
    evidence="stated",
    threads="NVIDIA/TransformerEngine#3551",
)
def causal_path_forgets_the_sink(call: Call) -> Call:
    """One path takes the sink and does not pass it on."""
    return textbook.prepare(call.but(sinks=None if call.causal else call.sinks))  # right: call
