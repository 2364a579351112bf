"""Rows that see no key: their output is zero and their log-sum-exp -inf."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.call import Call, uninitialised
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.split import SPLIT


@mutant(
    "B019",
    step="normalise",
    evidence="stated",
    offers=("mask", "causal", "key_lengths"),
    threads="pytorch/pytorch#103749 pytorch/pytorch#103963 ml-explore/mlx#2406 iree-org/iree#24178",
)
def nothing_divided_by_nothing(call: Call, exponentials: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The weights of a row that sees no key are 0 / 0."""
    return exponentials / total  # right: exponentials / np.where(total == 0, 1, total)


@mutant(
    "B025",
    step="merge_top",
    base=SPLIT,
    evidence="stated",
    offers=("mask", "causal", "key_lengths", "return_lse"),
    threads="flashinfer-ai/flashinfer#4051 flashinfer-ai/flashinfer#4054 vllm-project/vllm#39148",
)
def merge_of_two_empty_parts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merging two parts that are both empty computes exp(-inf - -inf), which is NaN."""
    return np.maximum(first, second)  # right: 0 where both are -inf


@mutant(
    "B027",
    step="store",
    evidence="partly",
    offers=("mask", "causal", "key_lengths"),
    threads="flashinfer-ai/flashinfer#363 flashinfer-ai/flashinfer#3047 sgl-project/sglang#22688",
)
def empty_rows_are_never_written(call: Call, output: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Rows without keys are skipped and the output was not initialised: they hold what the memory held."""
    stored = uninitialised(output.shape, output.dtype)  # right: np.zeros
    np.copyto(stored, output, where=seen.any(axis=-1, keepdims=True))
    return stored
