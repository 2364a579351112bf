"""An exponent that a fused multiply-add makes: found out, and nothing is said of scores that it cannot take."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.probes import conventions
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Precision
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, check, law_book, prepare
from qkverify.verification.mutation_testing import planted

LAWS = ("large_scores_do_not_overflow", "single_key_gets_all")


def control():  # type: ignore[no-untyped-def]
    pytest.importorskip("torch")
    return next(i for i in planted("controls") if i.name == "control-contracted-exponent")


def exponent_of(implementation, dtype: str) -> str | None:  # type: ignore[no-untyped-def]
    choice = conventions.detect(implementation, "cpu", dtype).get("exponent")
    return choice.value if choice else None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_found_out_and_not_accused(dtype: str) -> None:
    assert exponent_of(control(), dtype) == "contracted"
    for law in law_book():
        if law.name in LAWS:
            assert (
                check(
                    law, prepare(Cell(control(), "cpu", dtype)), max_examples=100, seed=1, database=None
                ).outcome
                == "passed"
            )


def kernel(weights):  # type: ignore[no-untyped-def]
    def attention(query, key, value):  # type: ignore[no-untyped-def]
        with np.errstate(all="ignore"):
            scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
            exponentials = weights(scores)
            return exponentials @ value / exponentials.sum(-1, keepdims=True)

    return describe(
        attention, arrays="numpy", dtypes=("float32",), requires=("G == H", "K >= 1"), differentiable=False
    )


@pytest.mark.parametrize(
    "weights",
    [
        lambda s: np.exp(s - s.max(-1, keepdims=True)),
        np.exp,
        lambda s: np.exp(s - np.minimum(s.max(-1, keepdims=True), np.float32(1e8))),
    ],
    ids=["subtracted", "not shifted", "shift cut off"],
)
def test_neither_a_difference_nor_a_missing_shift_is_taken_for_it(weights) -> None:  # type: ignore[no-untyped-def]
    assert exponent_of(kernel(weights), "float32") is None


def test_the_bound_is_that_of_a_difference_up_to_the_largest_score_and_infinite_beyond() -> None:
    implementation = control()
    difference, contracted = (
        Run(implementation, "cpu", "float32", {"exponent": x}) for x in ("difference", "contracted")
    )
    largest = contracted.precision.largest_score
    assert Precision.plain("float32").largest_score == np.inf
    rng = np.random.default_rng(0)
    for factor, within in ((1e-6, True), (0.1, True), (0.9, True), (1.5, False)):
        score = factor * largest
        query, key = np.full((1, 1, 3, 1), 1.0), np.array([score, 0.75 * score, -score])[None, None, :, None]
        arrays = {"query": query, "key": key, "value": rng.standard_normal((1, 1, 3, 2))}
        problem = Problem(**{name: x.astype(np.float32) for name, x in arrays.items()})
        bounds = [run.bound(problem)[0].errors for run in (difference, contracted)]
        np.testing.assert_array_equal(bounds[1], bounds[0] if within else np.inf)


def test_weights_are_finite_up_to_the_largest_score_and_not_far_above() -> None:
    import torch

    implementation = control()
    largest = Run(implementation, "cpu", "float32", {"exponent": "contracted"}).precision.largest_score
    rng = np.random.default_rng(0)

    def finite(scores: np.ndarray) -> bool:
        query, key = torch.ones(1, 1, 1, 1), torch.tensor(scores, dtype=torch.float32)[None, None, :, None]
        return all(bool(torch.isfinite(implementation.function(query, key[:, :, i : i + 1], torch.ones(1, 1, 1, 1))).all())
                   for i in range(len(scores)))  # fmt: skip

    assert finite(largest * rng.uniform(0.5, 1.0, 200))
    assert not finite(64 * largest * rng.uniform(0.5, 1.0, 200))
