"""Attention over two halves of the keys, each normalised by itself, merged by log-sum-exp: split-KV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.textbook import Step, Textbook, weighted_sum


def part_lse(call: Call, lse: np.ndarray) -> np.ndarray:
    """(B, H, Q, 1): the log-sum-exp of one part, kept for the merge."""
    return lse[..., None]


def merge_top(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The larger of two log-sum-exps; 0 when both parts are empty, because -inf - -inf is NaN."""
    top = np.maximum(first, second)
    return np.where(np.isneginf(top), 0, top)


def merge_weight(lse: np.ndarray, top: np.ndarray) -> np.ndarray:
    """What a part weighs in the whole; its log-sum-exp is natural."""
    return np.exp(lse - top)


@dataclass(frozen=True)
class Split(Textbook):
    """`Textbook` in two parts. (0, -inf) is neutral in the merge; a sink is the part (0, sink)."""

    part_lse: Step = part_lse
    merge_top: Step = merge_top
    merge_weight: Step = merge_weight

    def part(self, call: Call, logits: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Output (B, H, Q, E) and log-sum-exp (B, H, Q, 1) of some of the keys."""
        top = self.row_maximum(call, logits)
        exponentials = np.exp(logits - top)
        total = exponentials.sum(axis=-1, keepdims=True)
        weights = self.normalise(call, exponentials, total)
        lse = self.log_sum_exp(call, top, total)
        return weighted_sum(weights, value, ~np.isneginf(logits)), self.part_lse(call, lse)

    def merge(
        self, first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
    ) -> tuple[Any, Any]:
        """Two parts as one."""
        top = self.merge_top(first[1], second[1])
        left, right = self.merge_weight(first[1], top), self.merge_weight(second[1], top)
        total = left + right
        output = (left * first[0] + right * second[0]) / np.where(total == 0, 1, total)
        return output, top + np.log(total)

    def __call__(self, call: Call) -> Any:
        call = self.prepare(call)
        logits = self.logits(call, self.load_query(call), self.expand(call, self.load_key(call)))
        value, cut = self.expand(call, self.load_value(call)), call.K // 2
        first = self.part(call, logits[..., :cut], value[:, :, :cut])
        output, lse = self.merge(first, self.part(call, logits[..., cut:], value[:, :, cut:]))
        if call.sinks is not None:
            sink = np.broadcast_to(call.sinks.astype(call.dtype)[:, None, None], lse.shape)
            output, lse = self.merge((output, lse), (np.zeros_like(output), sink))
        output = self.store(call, output.astype(call.dtype), ~np.isneginf(logits))
        return (output, lse[..., 0].astype(call.dtype)) if call.return_lse else output


SPLIT = Split()
