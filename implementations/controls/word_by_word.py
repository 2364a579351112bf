"""Each query by itself: the keys that it sees are picked out and scored; nothing else is touched."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import control


@control()
def word_by_word(call: Call) -> Any:
    """One query at a time."""
    textbook.prepare(call)
    output = np.zeros((call.B, call.H, call.Q, call.E), call.dtype)
    lse = np.full((call.B, call.H, call.Q), -np.inf, call.dtype)
    visible = textbook.TEXTBOOK.visible(call)
    added = textbook.TEXTBOOK.bias(call, np.zeros(visible.shape, call.dtype))
    for b, h, i in np.ndindex(lse.shape):
        usable = visible[b, h, i] & ~np.isneginf(added[b, h, i])
        key, value = (array[b, h // call.group, usable] for array in (call.key, call.value))
        scores = textbook.softcap(call, (key * call.query[b, h, i]).sum(axis=-1) * textbook.scale(call))
        scores = scores + added[b, h, i, usable]
        sink = call.sinks[h : h + 1].astype(call.dtype) if call.sinks is not None else scores[:0]
        if usable.any() or len(sink):
            top = np.concatenate([scores, sink]).max()
            weights = np.exp(scores - top)
            total = weights.sum() + np.exp(sink - top).sum()
            output[b, h, i] = (weights / total) @ value
            lse[b, h, i] = top + np.log(total)
    return (output, lse) if call.return_lse else output
