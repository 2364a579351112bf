"""The laws about errors of one sign: which planted bug each of them sees, and that right code is not accused."""

from __future__ import annotations

import pytest

from qkverify.contract import registry
from qkverify.verification.checking import Cell, check, law_book, prepare
from qkverify.verification.mutation_testing import planted

LAWS = {law.name: law for law in law_book() if law.family == "unbiased"}
SEES = {
    "softmax_scale_is_unbiased": "A041",
    "row_sums_are_unbiased": "A042",
    "gradients_are_unbiased": "A043",
    "softmax_scale_of_gradients_is_unbiased": "A044",
    "delta_is_unbiased": "A045",
}


def cell(implementation, dtype=None):
    return Cell(implementation, "cpu", dtype or implementation.dtypes[0])


def test_each_law_has_a_bug_that_it_sees():
    assert SEES.keys() == LAWS.keys()


@pytest.mark.parametrize(("law", "bug"), SEES.items())
def test_a_law_sees_its_bug_in_one_example(law, bug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (mutant,) = [implementation for implementation in planted() if f"-{bug}-" in implementation.name]
    verdict = check(LAWS[law], prepare(cell(mutant)), max_examples=1)
    assert verdict.outcome == "failed", verdict
    assert verdict.counterexample.margin > 1
    assert "over 256 heads" in verdict.counterexample.location


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["torch_eager", "torch_sdpa-flash"])
def test_right_code_is_not_accused(name, dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (implementation,) = registry.find(name)
    for law in LAWS.values():
        verdict = check(law, prepare(cell(implementation, dtype)), max_examples=1)
        assert verdict.outcome == "passed", verdict
        assert (
            0 <= verdict.margin < 0.6
        )  # more is beyond five standard errors, and a law makes 42 tests at most


def test_a_law_of_the_output_counts_as_a_comparison_with_the_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (implementation,) = registry.find("torch_eager")
    verdict = check(LAWS["row_sums_are_unbiased"], prepare(cell(implementation, "float32")), max_examples=2)
    assert verdict.tested.results == verdict.examples > 0
