"""SageAttention's centred keys: exact on paper, and in every format further off than a kernel that leaves the keys alone."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import BFLOAT16, FLOAT32, Precision
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, check, law_book, prepare

LAWS = (
    "agrees_with_reference",
    "one_hot_lookup",
    "zero_scale_averages",
    "usual_calls",
    "large_scores_do_not_overflow",
)


def centred(query, key, value, *, scale=None):
    """float32 inside; the centred keys, the weights and the output are rounded to the format of the inputs."""
    stored = query.dtype
    q, k, v = (x.astype(np.float32) for x in (query, key, value))
    k = (k - k.mean(-2, keepdims=True)).astype(stored).astype(np.float32)
    scores = q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    products = weights.astype(stored).astype(np.float32) @ v
    return (products / weights.sum(-1, keepdims=True)).astype(stored)


def margin(dtype, precision, key):
    """How far the result is off at most, in bounds, over keys like these: queries of ones, the values 0 and 1 in turn."""
    moved = np.random.default_rng(0).uniform(0, 1, (60, len(key)))
    return max(_margin(dtype, precision, np.array(key) + shifts) for shifts in moved)


def _margin(dtype, precision, key):
    key = np.array(key, np.float64).reshape(1, 1, -1, 1).astype(dtype)
    query, value = np.full((1, 1, 1, 1), 1, dtype), (np.arange(key.size) % 2).reshape(key.shape).astype(dtype)
    implementation = describe(centred, arrays="numpy", differentiable=False, dtypes=("float32", "bfloat16"))
    run = Run(implementation, "cpu", np.dtype(dtype).name, precision=precision)
    problem = Problem(query=query, key=key, value=value)
    exact = run.bound(problem)[0]
    got = centred(query, key, value).astype(np.float64)
    return float((np.abs(got - exact.value) / exact.errors).max())


# The mean is far from the two keys that have the weight, so their differences from it are rounded as the mean is.
CASES = {
    "float32": (np.float32, Precision.plain("float32"), [0.1, 0.2, *[-60003.3] * 20]),
    "bfloat16": (ml_dtypes.bfloat16, Precision.fused("bfloat16"), [0.1, 0.3, *[-95.0] * 20]),
}


@pytest.mark.parametrize("case", CASES)
def test_centred_keys_exceed_the_bound_of_keys_that_are_left_alone(case):
    assert margin(*CASES[case]) > 1


@pytest.mark.parametrize("case", CASES)
def test_declared_they_stay_within_theirs_and_come_near_it(case):
    """Of up to eleven roundings that the bound allows for each of two keys, float32 makes one, of half a unit on average."""
    dtype, precision, key = CASES[case]
    assert 1 / (11 * 2 * 2) / 2 < margin(dtype, replace(precision, centred=True), key) <= 1


@pytest.mark.parametrize("precision", [Precision.plain("float32"), Precision.fused("bfloat16")])
def test_an_error_of_a_key_is_as_large_as_the_largest_key(precision):
    errors = precision.of_centred(np.array([[1.0], [-8.0], [0.0]]))
    unit = BFLOAT16.unit if precision.operand is BFLOAT16 else FLOAT32.unit
    assert (errors >= unit * np.array([[9.0], [16.0], [8.0]])).all()
    assert (errors[:, 0] / errors[2, 0] == [9 / 8, 2, 1]).all()
    assert not precision.of_centred(np.zeros((2, 1, 0, 3))).size


@pytest.mark.parametrize("law", LAWS)
def test_declared_centring_is_not_accused(law, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    declared = {"float32": replace(Precision.plain("float32"), centred=True)}
    implementation = describe(
        centred, arrays="numpy", requires=("G == H", "K >= 1"), precision=declared, dtypes=("float32",)
    )
    held = next(candidate for candidate in law_book() if candidate.name == law)
    verdict = check(
        held, prepare(Cell(implementation, "cpu", "float32")), max_examples=60, seed=1, database=None
    )
    assert verdict.outcome == "passed", verdict.counterexample.message
