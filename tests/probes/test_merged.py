"""What a merge of partial attentions is found out to do: its base, and which numbers its weights are taken from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.verification.checking import verify

Array = np.ndarray
LAWS = ("merged_agrees_with_reference", "merged_output_ignores_a_constant", "merged_sides_may_be_exchanged")


def merge_by_the_larger(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> Any:
    shift = np.maximum(lse_a, lse_b)
    shift = np.where(np.isfinite(shift), shift, shift.dtype.type(0))
    w_a, w_b = np.exp(lse_a - shift), np.exp(lse_b - shift)
    some = np.where(w_a + w_b > 0, w_a + w_b, shift.dtype.type(1))
    with np.errstate(divide="ignore"):
        return (w_a[..., None] * o_a + w_b[..., None] * o_b) / some[..., None], np.log(w_a + w_b) + shift


def merge_state(v_a: Array, s_a: Array, v_b: Array, s_b: Array) -> Any:
    """To base 2, as FlashInfer has it."""
    shift = np.maximum(s_a, s_b)
    shift = np.where(np.isfinite(shift), shift, shift.dtype.type(0))
    w_a, w_b = np.exp2(s_a - shift), np.exp2(s_b - shift)
    some = np.where(w_a + w_b > 0, w_a + w_b, shift.dtype.type(1))
    with np.errstate(divide="ignore"):
        return (w_a[..., None] * v_a + w_b[..., None] * v_b) / some[..., None], np.log2(w_a + w_b) + shift


def merge_by_the_result(out: Array, lse_a: Array, o_b: Array, lse_b: Array) -> Any:
    lse = np.logaddexp(lse_a, lse_b)
    shift = np.where(np.isfinite(lse), lse, lse.dtype.type(0))
    return np.exp(lse_a - shift)[..., None] * out + np.exp(lse_b - shift)[..., None] * o_b, lse


def merge_by_the_difference(o_a: Array, lse_a: Array, o_b: Array, lse_b: Array) -> Any:
    """As ring attention has it, made right for two empty sides."""
    with np.errstate(all="ignore"):
        difference = np.where(np.isneginf(lse_a) & np.isneginf(lse_b), lse_a.dtype.type(0), lse_a - lse_b)
        share = 1 / (1 + np.exp(-difference))
        return o_b + share[..., None] * (o_a - o_b), np.logaddexp(lse_a, lse_b)


CHOICES: dict[Any, dict[str, str]] = {
    merge_by_the_larger: {},
    merge_state: {"base": "2"},
    merge_by_the_result: {},
    merge_by_the_difference: {"weights": "by the difference"},
}


@pytest.mark.parametrize("function", CHOICES, ids=lambda function: function.__name__)
def test_how_a_merge_computes_is_found_out_and_held_to(function: Any) -> None:
    implementation = describe(function)
    assert implementation.operation == "merged_attention"
    for dtype in ("float32", "float64"):
        found = probes.conventions.detect(implementation, "cpu", dtype)
        assert {name: choice.value for name, choice in found.items()} == CHOICES[function]
    verification = verify(implementation, dtypes=("float32",), profile="quick", laws=LAWS)
    assert [verdict.outcome for verdict in verification.verdicts] == ["passed"] * 3
