"""The softcap: c tanh(s / c), after the scale, before bias and mask."""

from __future__ import annotations

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
