"""Multi-head attention as a module: split into heads, attend, concatenate, times W_O."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.multi_head import attend, merge, project
from qkverify.implementations.mutants.correct.planting import mutant

OPERATION = "multi_head_attention"
Array = np.ndarray


@mutant(
    "B060",
    operation=OPERATION,
    evidence="stated",
    threads="jsbaan/transformer-from-scratch#6 ajhalthor/Transformer-Neural-Network#4 "
    "jadore801120/attention-is-all-you-need-pytorch#7 hackiey/QAnet-pytorch#2",
)
def heads_are_merged_without_a_transpose(
    x: Array, w_q: Array, w_k: Array, w_v: Array, w_o: Array, *, heads: int, causal: bool = False
) -> Array:
    """(B, H, L, D) is reshaped to (B, L, H D) as it lies, which mixes words."""
    attended = attend(*project(x, heads, w_q, w_k, w_v), causal)
    merged = attended.reshape(*x.shape[:2], len(w_o))  # right: merge(attended)
    return merged @ w_o


@mutant(
    "B061",
    operation=OPERATION,
    evidence="stated",
    threads="reczoo/FuxiCTR#30 649453932/Chinese-Text-Classification-Pytorch#10",
)
def heads_are_split_without_a_transpose(
    x: Array, w_q: Array, w_k: Array, w_v: Array, w_o: Array, *, heads: int, causal: bool = False
) -> Array:
    """(B, L, H D) is reshaped to (B, H, L, D) as it lies: pieces of one word become words."""
    shape = (len(x), heads, x.shape[1])
    split = [(x @ w).reshape(*shape, w.shape[1] // heads) for w in (w_q, w_k, w_v)]  # right: project(x, ...)
    return merge(attend(*split, causal)) @ w_o


@mutant(
    "B062",
    operation=OPERATION,
    evidence="stated",
    threads="gazelle93/Transformer-Various-Positional-Encoding#1",
)
def batch_and_heads_change_places(
    x: Array, w_q: Array, w_k: Array, w_v: Array, w_o: Array, *, heads: int, causal: bool = False
) -> Array:
    """Batch and heads are flattened with the batch outside and taken apart with the heads outside."""
    attended = attend(*project(x, heads, w_q, w_k, w_v), causal)
    batch, _, *rest = attended.shape
    apart = attended.reshape(heads, batch, *rest).swapaxes(0, 1)  # right: attended
    return merge(apart) @ w_o
