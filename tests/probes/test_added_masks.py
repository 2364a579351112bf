"""A mask of bools that may also be floats is told by first calls, and the floats are verified."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.verification.checking import verify


def attention(scores_of_floats, read=lambda mask: mask):
    def kernel(q, k, v, mask=None):
        scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None and mask.dtype == bool:
            scores = np.where(mask, scores, -np.inf)
        elif mask is not None:
            scores = scores_of_floats(scores, mask)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
        total = weights.sum(-1, keepdims=True)
        return (weights / np.where(total == 0, 1, total) @ v).astype(q.dtype)

    return probes.fitted(describe(kernel, arrays="numpy", dtypes=("float32",), differentiable=False))


RIGHT = attention(lambda scores, mask: scores + mask)
WRONG = attention(lambda scores, mask: scores - mask)


@pytest.mark.parametrize("implementation", [RIGHT, WRONG])
def test_floats_that_answer_in_proportion_are_offered_as_a_bias(implementation) -> None:
    assert implementation.parameters["bias"] == implementation.parameters["mask"] == "mask"
    assert "mask may be floats, which are added to the scores" in implementation.remarks


@pytest.mark.parametrize("of_floats", [
    lambda scores, mask: np.where(mask == 0, -np.inf, scores),  # 1 for what is visible
    lambda scores, mask: np.where(mask.astype(bool), -np.inf, scores),
    lambda scores, mask: scores,
])  # fmt: skip
def test_floats_that_are_read_as_bools_are_no_bias(of_floats) -> None:
    assert "bias" not in attention(of_floats).offers


def test_the_laws_see_floats_that_are_subtracted() -> None:
    laws = ["agrees_with_reference"]
    assert not verify(RIGHT, profile="quick", laws=laws).failures
    assert verify(WRONG, profile="quick", laws=laws).failures
