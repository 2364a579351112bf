"""One key after the other, the last one first, with a running maximum: sums in the opposite order."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import control
from qkverify.implementations.mutants.correct.textbook import Textbook


class ReversedKeys(Textbook):
    """The sums so far are rescaled whenever a key raises the maximum."""

    def __call__(self, call: Call) -> Any:
        call = self.prepare(call)
        logits = self.logits(call, call.query, self.expand(call, call.key))
        value = self.expand(call, call.value)
        first = -np.inf if call.sinks is None else call.sinks.astype(call.dtype)[:, None, None]
        top = np.broadcast_to(first, (call.B, call.H, call.Q, 1)).astype(call.dtype)
        total = np.where(np.isneginf(top), 0, 1).astype(call.dtype)
        output = np.zeros((call.B, call.H, call.Q, call.E), call.dtype)
        for j in reversed(range(call.K)):
            score = logits[..., j : j + 1]
            old, top = top, np.maximum(top, score)
            fades = np.where(np.isneginf(old), 0, np.exp(old - top))
            weight = np.where(np.isneginf(score), 0, np.exp(score - top))
            total = total * fades + weight
            output = output * fades + np.where(np.isneginf(score), 0, weight * value[:, :, None, j])
        output = output / np.where(total == 0, 1, total)
        return (output, (top + np.log(total))[..., 0]) if call.return_lse else output


@control()
def reversed_keys(call: Call) -> Any:
    """The last key first."""
    return ReversedKeys()(call)
