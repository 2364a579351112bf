"""What half-precision kernels round besides is found out, and only where it explains what the fused model does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qkverify.contract import describe
from qkverify.probes import conventions, fast_exponential
from qkverify.rounding import FORMATS
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, prepare
from qkverify.verification.mutation_testing import planted

pytest.importorskip("torch")

HALF = ("float16", "bfloat16")
FOUND = {
    "control-per-head-gradients": {"head_gradients": "stored"},
    "control-rounded-row-sum": {"row_sum": "rounded"},
    "control-stored-splits": {"split_results": "stored"},
}
FURTHER = ("head_gradients", "row_sum", "split_results", "softmax_gradient")
FIELDS = {"head_gradients": "parts", "row_sum": "row_sum", "split_results": "splits"}
every_control = pytest.mark.parametrize("name", FOUND)
every_dtype = pytest.mark.parametrize("dtype", HALF)


def implementation_named(name: str):  # type: ignore[no-untyped-def]
    return next(implementation for implementation in planted("controls") if implementation.name == name)


def further(choices):  # type: ignore[no-untyped-def]
    return {name: choice.value for name, choice in choices.items() if name in FURTHER}


@every_control
@every_dtype
def test_a_further_rounding_is_found_out(name: str, dtype: str) -> None:
    choices = conventions.detect(implementation_named(name), "cpu", dtype)
    assert choices["precision"].value == "fused"
    assert further(choices) == FOUND[name]


@every_control
def test_it_is_found_out_where_only_the_precision_is_declared(name: str) -> None:
    declared = replace(implementation_named(name), precision={"float16": "fused"})
    choices = conventions.detect(declared, "cpu", "float16")
    assert (choices["precision"].how, further(choices)) == ("declared", FOUND[name])


@every_control
def test_what_is_declared_is_held_to(name: str) -> None:
    """A kernel that says that it rounds nothing besides is given no other rounding in its place."""
    (convention,) = FOUND[name]
    usual = {"head_gradients": "added", "row_sum": "exponentials", "split_results": "kept"}[convention]
    original = implementation_named(name)
    declared = replace(original, semantics={**original.semantics, convention: usual})
    assert further(conventions.detect(declared, "cpu", "float16")) == {}


@every_control
def test_a_declared_further_rounding_widens_the_bounds(name: str) -> None:
    ((convention, value),) = FOUND[name].items()
    original = implementation_named(name)
    declared = replace(original, semantics={**original.semantics, convention: value})
    run = prepare(Cell(declared, "cpu", "float16"))
    for precision in (run.precision, run.gradient_precision):
        assert getattr(precision, FIELDS[convention]) == FORMATS["float16"]
    single = Run(replace(declared, dtypes=("float32",)), "cpu", "float32")
    assert getattr(single.precision, FIELDS[convention]) is None


@every_dtype
def test_a_fused_kernel_is_not_given_what_it_does_not_need(dtype: str) -> None:
    def attention(query, key, value):  # type: ignore[no-untyped-def]
        wide = (x.float().repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (query, key, value))
        query, key, value = wide
        return ((query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value).to(dtype_of)

    import torch

    dtype_of = getattr(torch, dtype)
    implementation = describe(attention, arrays="torch", dtypes=(dtype,), requires=("K >= 1",))
    choices = conventions.detect(implementation, "cpu", dtype)
    assert (choices["precision"].value, further(choices)) == ("fused", {})


@every_control
@every_dtype
def test_what_is_rounded_besides_is_not_taken_for_a_fast_exponential(name: str, dtype: str) -> None:
    run = Run(implementation_named(name), "cpu", dtype)
    assert not any(fast_exponential.is_fast(run, size) for size in (1, 4))


def test_truncated_results_are_not_taken_for_a_further_rounding() -> None:
    truncated = next(i for i in planted("mutants") if i.name.endswith("result-is-cut-off"))
    assert further(conventions.detect(truncated, "cpu", "bfloat16")) == {}


@every_dtype
@pytest.mark.parametrize("name", ["control-in-steps", "control-softmax-in-steps"])
def test_a_softmax_that_is_differentiated_in_steps_is_found_out(name: str, dtype: str) -> None:
    choices = conventions.detect(implementation_named(name), "cpu", dtype)
    assert choices["gradient_precision"].value == "eager"
    assert further(choices) == {"softmax_gradient": "steps"}


@every_dtype
def test_torchs_own_softmax_is_not_given_the_bounds_of_steps(dtype: str) -> None:
    def attention(query, key, value):  # type: ignore[no-untyped-def]
        return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value

    def softmax(scores):  # type: ignore[no-untyped-def]
        return scores.softmax(-1)

    for function in (attention, softmax):
        implementation = describe(function, arrays="torch", dtypes=(dtype,))
        assert further(conventions.detect(implementation, "cpu", dtype)) == {}
