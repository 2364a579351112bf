"""Parts of the keys merged in the order in which they happen to be ready: another one in every call."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import control
from qkverify.implementations.mutants.correct.split import Split

PART = 5
GENERATOR = np.random.default_rng()


class SplitInAnyOrder(Split):
    """Any number of parts, merged one after the other in a random order."""

    def __call__(self, call: Call) -> Any:
        call = self.prepare(call)
        logits = self.logits(call, call.query, self.expand(call, call.key))
        value = self.expand(call, call.value)
        cuts = [slice(start, start + PART) for start in range(0, max(call.K, 1), PART)]
        parts = [self.part(call, logits[..., cut], value[:, :, cut]) for cut in cuts]
        if call.sinks is not None:
            sink = np.broadcast_to(call.sinks.astype(call.dtype)[:, None, None], parts[0][1].shape)
            parts.append((np.zeros_like(parts[0][0]), sink))
        first, *others = GENERATOR.permutation(len(parts)).tolist()
        merged = parts[first]
        for each in others:
            merged = self.merge(merged, parts[each])
        output, lse = merged
        return (output, lse[..., 0]) if call.return_lse else output


@control(tile=PART, deterministic=False)
def any_order(call: Call) -> Any:
    """Parts of five keys, merged in a random order in every call, which is declared."""
    return SplitInAnyOrder()(call)
