"""Values are summed with exp(s - m) and divided once at the end; delta comes from the stored output."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.gradients import BACKWARD
from qkverify.implementations.mutants.correct.planting import control
from qkverify.implementations.mutants.correct.textbook import TEXTBOOK, Textbook, weighted_sum


class LateDivision(Textbook):
    """One division a number of the output instead of one a weight."""

    def __call__(self, call: Call) -> Any:
        call = self.prepare(call)
        logits = self.logits(call, call.query, self.expand(call, call.key))
        top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
        sink = None if call.sinks is None else call.sinks.astype(call.dtype)[:, None, None]
        top = top if sink is None else np.maximum(top, sink)
        top = np.where(np.isneginf(top), 0, top).astype(call.dtype)
        exponentials = np.exp(logits - top)
        total = exponentials.sum(axis=-1, keepdims=True) + (0 if sink is None else np.exp(sink - top))
        summed = weighted_sum(exponentials, self.expand(call, call.value), ~np.isneginf(logits))
        output = summed / np.where(total == 0, 1, total)
        return (output, (top + np.log(total))[..., 0]) if call.return_lse else output


def from_output(call: Call, upstream: np.ndarray) -> Any:
    """delta = rowsum(dO * O)."""
    output = TEXTBOOK(call.but(return_lse=False))
    delta = (upstream * output).sum(axis=-1, keepdims=True)
    return BACKWARD.but(delta=lambda call, weights, d_weights: delta)(call, upstream)


@control(backward=from_output, delta="output")
def late_division(call: Call) -> Any:
    """Division at the end."""
    return LateDivision()(call)
