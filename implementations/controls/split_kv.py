"""Keys in parts of seven, each normalised by itself, merged pairwise in a tree by log-sum-exp."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import control
from qkverify.implementations.mutants.correct.split import Split

PART = 7


class SplitTree(Split):
    """Any number of parts; neighbours are merged until one is left."""

    def __call__(self, call: Call) -> Any:
        call = self.prepare(call)
        logits = self.logits(call, call.query, self.expand(call, call.key))
        value = self.expand(call, call.value)
        cuts = [slice(start, start + PART) for start in range(0, max(call.K, 1), PART)]
        parts = [self.part(call, logits[..., cut], value[:, :, cut]) for cut in cuts]
        if call.sinks is not None:
            sink = np.broadcast_to(call.sinks.astype(call.dtype)[:, None, None], parts[0][1].shape)
            parts.append((np.zeros_like(parts[0][0]), sink))
        while len(parts) > 1:
            left = [parts[-1]] if len(parts) % 2 else []
            parts = [
                self.merge(first, second) for first, second in zip(parts[0::2], parts[1::2], strict=False)
            ] + left
        output, lse = parts[0]
        return (output, lse[..., 0]) if call.return_lse else output


@control(tile=PART)
def split_kv(call: Call) -> Any:
    """Parts of seven keys."""
    return SplitTree()(call)
