"""Scores times log2(e) and powers of two, as GPU kernels do; the log-sum-exp is natural again."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import control
from qkverify.implementations.mutants.correct.textbook import Textbook

LOG2_E = float(np.log2(np.e))
LN_2 = float(np.log(2))


class BaseTwo(Textbook):
    """exp(s - m) is 2^(s log2(e) - m log2(e)); the log-sum-exp is (m' + log2(sum)) ln(2)."""

    def softmax(self, call: Call, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = logits * LOG2_E
        sink = None if call.sinks is None else call.sinks.astype(logits.dtype)[:, None, None] * LOG2_E
        top = scaled.max(axis=-1, keepdims=True, initial=-np.inf)
        top = top if sink is None else np.maximum(top, sink)
        top = np.where(np.isneginf(top), 0, top).astype(logits.dtype)
        powers = np.exp2(scaled - top)
        total = powers.sum(axis=-1, keepdims=True) + (0 if sink is None else np.exp2(sink - top))
        return powers / np.where(total == 0, 1, total), ((top + np.log2(total)) * LN_2)[..., 0]


@control()
def base_two(call: Call) -> Any:
    """Powers of two."""
    return BaseTwo()(call)
