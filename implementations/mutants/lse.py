"""The log-sum-exp: natural logarithm, and what splits of the keys are merged by."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call, uninitialised
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.split import SPLIT

OFFERS = ("mask", "causal", "scale", "return_lse")


@mutant(
    "B124",
    step="log_sum_exp",
    offers=OFFERS,
    lse="natural",
    evidence="stated",
    threads="lightseekorg/tokenspeed#571 pytorch/pytorch#181645 deepseek-ai/FlashMLA#106",
)
def logarithm_to_base_two(call: Call, top: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The kernel works with exp2 and returns its logarithm to base 2."""
    return textbook.log_sum_exp(call, top, total) / np.log(2)  # right: without / np.log(2)


@mutant(
    "A039", step="log_sum_exp", offers=("bias", "scale", "return_lse"), lse="natural", evidence="inferred"
)
def lowest_number_is_empty_in_the_lse_alone(call: Call, top: np.ndarray, total: np.ndarray) -> np.ndarray:
    """A row of nothing but the lowest number counts as empty in the log-sum-exp, and shares its weight in the output."""
    log_sums = textbook.log_sum_exp(call, top, total)
    return np.where(log_sums <= np.finfo(log_sums.dtype).min, -np.inf, log_sums)  # right: found


@mutant(
    "B125",
    step="merge_weight",
    base=SPLIT,
    offers=OFFERS,
    lse="natural",
    evidence="stated",
    threads="sgl-project/sglang#40903 sgl-project/sglang#35045 sgl-project/sglang#33064 "
    "vllm-project/vllm#28840",
)
def merge_takes_the_wrong_base(lse: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Parts are merged as if their natural log-sum-exp were to base 2."""
    return np.exp2(lse - top)  # right: np.exp(lse - top)


@mutant(
    "B126",
    step="part_lse",
    base=SPLIT,
    offers=OFFERS,
    lse="natural",
    evidence="stated",
    threads="flashinfer-ai/flashinfer#50 pytorch/pytorch#188302",
)
def lse_is_written_only_when_asked_for(call: Call, lse: np.ndarray) -> np.ndarray:
    """The merge needs the log-sum-exp of both parts, but it is stored only when the caller wants it."""
    stored = uninitialised((*lse.shape, 1), lse.dtype)
    if call.return_lse:  # right: always
        stored[...] = lse[..., None]
    return stored
