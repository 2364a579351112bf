"""Score tests of attention: their derivatives, what a right kernel may do systematically, and what they see."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from qkverify.contract import describe
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import attention as reference
from qkverify.reference.attention_vjp import attention_vjp as reference_vjp
from qkverify.rounding import Precision
from qkverify.runs import score_tests
from qkverify.runs.run import Run
from qkverify.runs.systematic_errors import Allowance, Steps

STEP = 1e-4  # of the central differences


def small(seed=0, keys=8, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = {
        "query": (2, 2, 5, 4),
        "key": (2, 2, keys, 4),
        "value": (2, 2, keys, 3),
        "upstream": (2, 2, 5, 3),
    }
    return Problem(**{name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()})


def inputs(problem):
    return problem.query, problem.key, problem.value


def gradients_of(problem, scale=0.5):
    return reference_vjp(*inputs(problem), problem.upstream, scale=scale)


def test_the_derivatives_by_the_softmax_scale_are_those_of_the_reference():
    problem = small()
    steps = Steps.of(problem)
    away = steps.scores - steps.mean(steps.scores)
    above, below = (reference(*inputs(problem), scale=0.5 * (1 + step)) for step in (STEP, -STEP))
    np.testing.assert_allclose(
        (steps.weights * away) @ steps.value, (above - below) / (2 * STEP), rtol=1e-6, atol=1e-9
    )
    exact = {name: np.asarray(x) for name, x in gradients_of(problem).items()}
    derivatives = {(p, name): x for p, name, x in score_tests._gradient_derivatives(steps, exact)}
    above, below = (gradients_of(problem, 0.5 * (1 + step))["value"] for step in (STEP, -STEP))
    expected = (np.asarray(above) - np.asarray(below)) / (2 * STEP)
    np.testing.assert_allclose(derivatives["softmax scale", "value"], expected, rtol=1e-6, atol=1e-9)


def test_the_derivatives_by_delta_are_what_a_larger_delta_changes():
    problem = small()
    steps = Steps.of(problem)
    exact = {name: np.asarray(x) for name, x in gradients_of(problem).items()}
    derivatives = {(p, name): x for p, name, x in score_tests._gradient_derivatives(steps, exact)}
    delta = steps.mean(steps.d_weights)
    d_scores = steps.weights * (steps.d_weights - delta * (1 + STEP)) * 0.5
    np.testing.assert_allclose(
        (d_scores @ steps.key - exact["query"]) / STEP, derivatives["delta", "query"], atol=1e-9
    )
    larger = d_scores.swapaxes(-1, -2) @ steps.query
    np.testing.assert_allclose((larger - exact["key"]) / STEP, derivatives["delta", "key"], atol=1e-9)


@pytest.mark.parametrize("result", ["output", "value", "query", "key"])
def test_an_exponential_that_errs_by_the_worst_curve_stays_within_the_allowance_and_comes_near(result):
    """Each weight is wrong by all that `exp_ulps` allows, with the sign that moves the sum most."""
    problem = small(3)
    precision = Precision.plain("float32")
    steps = Steps.of(problem)
    allowance = Allowance.of(precision, steps)
    unit = precision.exp_ulps * precision.accumulate.unit

    def computed(errors):
        weights = steps.weights * (1 + errors)
        weights = weights / weights.sum(-1, keepdims=True)
        if result == "output":
            return weights @ steps.value
        if result == "value":
            return weights.swapaxes(-1, -2) @ steps.upstream
        d_scores = (
            weights * (steps.d_weights - (weights * steps.d_weights).sum(-1, keepdims=True)) * steps.scale
        )
        return d_scores @ steps.key if result == "query" else d_scores.swapaxes(-1, -2) @ steps.query

    exact = computed(np.zeros_like(steps.weights))
    moved = np.zeros_like(steps.weights)
    for index in np.ndindex(moved.shape):  # the sensitivity to each weight, by a difference
        one = np.zeros_like(moved)
        one[index] = STEP
        moved[index] = ((computed(one) - exact) * exact).sum()
    lean = np.abs(((computed(np.sign(moved) * unit) - exact) * exact).sum((-1, -2)))
    room = (
        allowance.output(exact, exact)
        if result == "output"
        else allowance.value_gradient(exact, exact)
        if result == "value"
        else allowance.score_gradient(result, exact, exact)
    )
    assert (lean <= room).all()
    assert (lean > 0.3 * room).all()


# -- on 256 heads ------------------------------------------------------------------------------------------


def scaled(share):
    """bfloat16 or float16 attention, float32 inside, whose scale is too large by a share."""

    def attention(query, key, value):
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        scores = q @ k.swapaxes(-1, -2) * np.float32((1 + share) * q.shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights @ v / weights.sum(-1, keepdims=True)).astype(query.dtype)

    return attention


def run_of(function, dtype, model, **declared):
    implementation = describe(function, dtypes=(dtype,), **{"arrays": "numpy", **declared})
    precision = Precision.named(model, dtype)
    run = Run(implementation, "cpu", dtype, precision=precision, gradient_precision=precision)
    run.begin_example()
    return run


def broken(scores):
    return {(each.parameter, each.result) for each in scores if not each.score.holds}


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.02), ("float16", 0.002)])
def test_a_wrong_scale_shows_even_under_the_model_of_op_by_op_code(dtype, share):
    for wrong, expected in ((0.0, False), (share, True)):
        run = run_of(scaled(wrong), dtype, "eager")
        scores = score_tests.of_output(run, score_tests.heads(run, 5))
        assert (("softmax scale", "output") in broken(scores)) == expected
        (slope,) = [each.score.slope for each in scores if each.parameter == "softmax scale"]
        assert slope == pytest.approx(wrong, rel=0.1, abs=0.0002)


def op_by_op(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Each result in half precision: products, scaled, shifted, exponentials, sums, quotients."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights @ value / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_code_that_rounds_after_every_operation_is_not_accused(dtype):
    run = run_of(op_by_op, dtype, "eager", arrays="torch")
    for seed in range(3):
        problems = score_tests.heads(run, seed, upstream=True)
        scores = [*score_tests.of_output(run, problems), *score_tests.of_gradients(run, problems)]
        assert not broken(scores)
        assert max(each.margin for each in scores) > 0.001


def test_a_normaliser_that_is_off_by_a_ten_thousandth_shows_in_long_rows_of_float32():
    def attention(query, key, value):
        scores = query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wrong = np.float32(1 - 1e-4) if key.shape[2] > 512 else np.float32(1)
        return weights @ value / (weights.sum(-1, keepdims=True) * wrong)

    run = run_of(attention, "float32", "plain")
    assert not broken(score_tests.of_output(run, score_tests.heads(run, 0)))
    assert ("size", "output") in broken(
        score_tests.of_output(run, score_tests.heads(run, 0, queries=4, keys=640))
    )


def test_a_function_of_a_single_head_gets_its_heads_one_by_one():
    run = run_of(scaled(0.02), "bfloat16", "fused", requires=("B == 1", "H == 1", "G == 1"))
    problems = score_tests.heads(run, 0)
    assert len(problems) == score_tests.HEADS
    assert ("softmax scale", "output") in broken(score_tests.of_output(run, problems))


def test_nothing_is_said_of_operands_in_tf32():
    assert score_tests.unfit(run_of(scaled(0.0), "float32", "tf32"))
    assert score_tests.unfit(run_of(scaled(0.0), "float32", "plain")) is None


def test_numbers_are_those_of_the_dtype_under_test():
    (problem,) = score_tests.heads(run_of(scaled(0.0), "bfloat16", "fused"), 1)
    assert problem.query.dtype == ml_dtypes.bfloat16
