"""Laws that compare two calls ask for the same bits only of what makes its sums in one order; others stay within the bound."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.implementations.numpy_textbook import attention as right
from qkverify.verification.checking import Cell, check, law_book, prepare
from qkverify.verification.mutation_testing import cell_of, planted

COMPARE_BITS = ("head_independence", "causal_ignores_future", "padding_is_never_read", "masked_keys_have_no_influence",
                "same_call_twice")  # fmt: skip
LAWS = {law.name: law for law in law_book()}


def outcome(name, cell):
    return check(LAWS[name], prepare(cell), max_examples=40, seed=1, database=None).outcome


@pytest.mark.parametrize("name", COMPARE_BITS)
def test_sums_in_any_order_are_not_accused_where_that_is_declared(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (control,) = [each for each in planted("controls") if each.name == "control-any-order"]
    assert outcome(name, cell_of(control)) == "passed"


def leaking(query, key, value, *, key_lengths=None):
    """Attention to which the padding adds a little."""
    return (
        right(query, key, value, key_lengths=key_lengths)
        + np.float32(1e-3) * value.mean((1, 2), keepdims=True)[..., :1]
    )


def test_what_reads_padding_is_accused_though_its_sums_are_in_any_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    declared = {"arrays": "numpy", "dtypes": ("float32",), "differentiable": False, "deterministic": False}
    implementation = describe(leaking, name="leaking", **declared)
    assert outcome("padding_is_never_read", Cell(implementation, "cpu", "float32")) == "failed"


def test_a_cpu_is_no_promise_of_one_order():
    (control,) = [each for each in planted("controls") if each.name == "control-any-order"]
    assert not prepare(cell_of(control)).adds_in_order
    (other,) = [each for each in planted("controls") if each.name == "control-split-kv"]
    assert prepare(cell_of(other)).adds_in_order
