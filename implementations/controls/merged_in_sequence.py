"""Tiles of keys merged one after the other by their log-sum-exps, as ring attention merges what comes round.

The log-sum-exp is rounded after each tile. Where scores are large, that is a relative error of the weights, tile after tile.
"""

from __future__ import annotations

import torch

from qkverify.implementations.controls.stored_parts import (
    checked,
    divided,
    exponentials,
    per_query_head,
    scores,
)
from qkverify.implementations.mutants.correct.planting import register

Tensor = torch.Tensor
TILE = 16


def merged_in_sequence(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """float32: out = out - sigmoid(lse' - lse) (out - out'), in the words of ring-flash-attention, update_out_and_lse."""
    checked(query, key, value)
    logits, values = scores(query, key, scale), per_query_head(value, query.shape[1]).float()
    output = lse = None
    for start in range(0, max(key.shape[2], 1), TILE):
        top, weights = exponentials(logits[..., start : start + TILE])
        total = weights.sum(-1, keepdim=True)
        block = divided(weights @ values[..., start : start + TILE, :], total)
        block_lse = top + torch.log(total)
        if output is None:
            output, lse = block, block_lse
        else:
            output = output - torch.sigmoid(block_lse - lse) * (output - block)
            lse = torch.logaddexp(lse, block_lse)
    return output.to(query.dtype)


register(merged_in_sequence, "control-merged-in-sequence", arrays="torch", dtypes=("float32",), masked_values="read",
         merges="in sequence", differentiable=False)  # fmt: skip
