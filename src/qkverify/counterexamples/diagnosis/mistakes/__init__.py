"""The well-known mistakes of attention, from special to general: of several that fit, the first is named."""

from __future__ import annotations

from qkverify.counterexamples.diagnosis.mistakes.gradients import GRADIENTS
from qkverify.counterexamples.diagnosis.mistakes.heads import HEADS
from qkverify.counterexamples.diagnosis.mistakes.masks import EMPTY_ROWS, MASKS, PADDING
from qkverify.counterexamples.diagnosis.mistakes.positions import CAUSALITY, WINDOWS
from qkverify.counterexamples.diagnosis.mistakes.scores import SCALE, TERMS
from qkverify.counterexamples.diagnosis.mistakes.softmax import LOG_SUM_EXP, SOFTMAX
from qkverify.counterexamples.diagnosis.mistakes.tiles import TILED
from qkverify.counterexamples.diagnosis.mistakes.variants import Mistake

MISTAKES: tuple[Mistake, ...] = (
    *CAUSALITY, *SCALE, *MASKS, *PADDING, *WINDOWS, *HEADS, *TERMS, *EMPTY_ROWS, *SOFTMAX,
    *TILED, *LOG_SUM_EXP, *GRADIENTS,
)  # fmt: skip

__all__ = ["MISTAKES", "Mistake"]
