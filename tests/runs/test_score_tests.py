"""Score tests of attention: their derivatives, what a right kernel may do systematically, and what they see."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from qkverify.benchmarks.planted_errors import Planted
from qkverify.contract import describe
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import attention as reference
from qkverify.reference.attention_vjp import attention_vjp as reference_vjp
from qkverify.rounding import Precision
from qkverify.runs import balanced_tests, score_problems, score_tests
from qkverify.runs.attention_steps import Steps
from qkverify.runs.run import Run
from qkverify.runs.systematic_errors import Allowance

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
    allowance = Allowance.of(Precision.plain("float64"), Steps.of(problem))
    exact = np.asarray(reference(*inputs(problem), scale=0.5))
    above, below = (np.asarray(reference(*inputs(problem), scale=0.5 * (1 + x))) for x in (STEP, -STEP))
    derivative = balanced_tests.scale_of_output(allowance, exact).derivative
    np.testing.assert_allclose(derivative, (above - below) / (2 * STEP), rtol=1e-6, atol=1e-9)
    exact = np.asarray(gradients_of(problem)["value"])
    above, below = (np.asarray(gradients_of(problem, 0.5 * (1 + x))["value"]) for x in (STEP, -STEP))
    derivative = balanced_tests.scale_of_value_gradient(allowance, exact).derivative
    np.testing.assert_allclose(derivative, (above - below) / (2 * STEP), rtol=1e-6, atol=1e-9)


def test_the_derivatives_by_delta_are_what_a_larger_delta_changes():
    problem = small()
    steps = Steps.of(problem)
    exact = {name: np.asarray(x) for name, x in gradients_of(problem).items()}
    derivatives = score_tests.by_delta(steps)
    delta = steps.mean(steps.d_weights)
    d_scores = steps.weights * (steps.d_weights - delta * (1 + STEP)) * 0.5
    np.testing.assert_allclose(
        (d_scores @ steps.key - exact["query"]) / STEP, derivatives["query"], atol=1e-9
    )
    larger = d_scores.swapaxes(-1, -2) @ steps.query
    np.testing.assert_allclose((larger - exact["key"]) / STEP, derivatives["key"], atol=1e-9)


@pytest.mark.parametrize("result", ["value", "query", "key"])
def test_an_exponential_that_errs_by_the_worst_curve_stays_within_the_allowance_and_comes_near(result):
    """Each weight is wrong by all that `exp_ulps` allows, with the sign that moves the sum most: in the forward pass, which
    leaves row sums and the output, in the backward pass, or in both alike."""
    problem = small(3)
    precision = Precision.plain("float32")
    steps = Steps.of(problem)
    allowance = Allowance.of(precision, steps)
    unit = precision.exp_ulps * precision.accumulate.unit

    def computed(errors):
        forward, backward = 1 + errors
        sums = (steps.weights * forward).sum(-1, keepdims=True)
        weights = steps.weights * backward / sums
        if result == "value":
            return weights.swapaxes(-1, -2) @ steps.upstream
        delta = (steps.weights * forward / sums * steps.d_weights).sum(-1, keepdims=True)
        d_scores = weights * (steps.d_weights - delta) * steps.scale
        return d_scores @ steps.key if result == "query" else d_scores.swapaxes(-1, -2) @ steps.query

    exact = computed(np.zeros((2, *steps.weights.shape)))
    moved = np.zeros((2, *steps.weights.shape))
    for index in np.ndindex(moved.shape):  # the sensitivity to each weight, by a difference
        one = np.zeros_like(moved)
        one[index] = STEP
        moved[index] = ((computed(one) - exact) * exact).sum()
    room = allowance.gradient(result, exact, exact)
    leans = []
    for passes in ([1, 0], [0, 1], [1, 1]):  # forward, backward
        where = np.reshape(passes, (2, 1, 1, 1, 1))
        errors = where * np.sign((where * moved).sum(0)) * unit
        leans.append(np.abs(((computed(errors) - exact) * exact).sum((-1, -2))))
    assert (np.array(leans) <= room).all()
    assert (np.max(leans, 0) > 0.3 * room).all()


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


@pytest.mark.parametrize(("dtype", "units"), [("bfloat16", 0.4), ("float16", 0.2)])
def test_a_wrong_scale_shows_even_under_the_model_of_op_by_op_code(dtype, units):
    unit = Precision.fused(dtype).output.unit
    for wrong, expected in ((0.0, False), (units * unit, True)):
        run = run_of(scaled(wrong), dtype, "eager")
        (found,) = score_tests.scale_of_output(run, score_problems.two_levels(run, 5))
        assert found.score.holds != expected
        assert found.score.slope == pytest.approx(wrong, abs=0.05 * unit)


def in_float32(exponential, *, share=0.0):
    """float32 attention with an exponential of its own and a scale that is too large by a share."""

    def attention(query, key, value):
        scale = np.float32((1 + share) * query.shape[-1] ** -0.5)
        scores = query @ key.swapaxes(-1, -2) * scale
        weights = exponential(scores - scores.max(-1, keepdims=True))
        return weights @ value / weights.sum(-1, keepdims=True)

    return attention


def base_2(x):
    return np.exp2(x * np.float32(balanced_tests.LOG2_E))


def one_constant(query, key, value):
    """log2 e in the scale, one rounding of a constant."""
    scores = query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5 * balanced_tests.LOG2_E)
    weights = np.exp2(scores - scores.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)


def errs_by(curve):
    return lambda x: (np.exp(x.astype(np.float64)) * (1 + EXPONENTIAL * curve(x))).astype(np.float32)


EXPONENTIAL = 20 * 2.0**-24  # what `Precision` allows
CURVES = {
    "base 2": base_2,
    "too large where small": errs_by(lambda x: np.where(x < -30, 1.0, -1.0)),
    "too small where small": errs_by(lambda x: np.where(x < -30, -1.0, 1.0)),
    "a wave": errs_by(np.sin),
    "steps": errs_by(lambda x: np.sign(np.sin(40 * x))),
}


@pytest.mark.parametrize("curve", CURVES)
def test_no_curve_of_an_exponential_is_accused_in_float32(curve):
    run = run_of(in_float32(CURVES[curve]), "float32", "plain")
    scores = score_tests.scale_of_output(run, score_problems.two_levels(run, 1))
    scores += score_tests.size_of_output(run, score_problems.heads(run, 1))
    assert not broken(scores)
    if "where small" in curve:  # the worst there is
        assert abs(scores[0].score.slope) > 0.5 * scores[0].score.systematic


def test_a_scale_that_is_off_by_two_units_of_float32_is_seen():
    for share in (2 * 2.0**-24, -2 * 2.0**-24):
        run = run_of(in_float32(np.exp, share=share), "float32", "plain")
        (found,) = score_tests.scale_of_output(run, score_problems.two_levels(run, 2))
        assert not found.score.holds
    run = run_of(one_constant, "float32", "plain")
    assert not broken(score_tests.scale_of_output(run, score_problems.two_levels(run, 2)))


def largest_is_rounded(query, key, value):
    """float16, whose exponential is too large throughout: in the row sum; where a weight meets its value, 1.0001 is 1."""
    q, k, v = (x.astype(np.float32) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * np.float32(1 + 2.0**-13)
    return (weights.astype(np.float16).astype(np.float32) @ v / weights.sum(-1, keepdims=True)).astype(
        np.float16
    )


def test_the_largest_weight_may_be_one_where_it_meets_the_value():
    """PyTorch's flash kernel on a CPU does so: its exponential of 0 is no 1, and in float16 it becomes 1."""
    run = run_of(largest_is_rounded, "float16", "fused-fast-exp")
    (found,) = score_tests.size_of_output(run, score_problems.heads(run, 0))
    assert found.score.holds
    assert abs(found.score.slope) > 0.5 * found.score.systematic


def delta_of_that(query, key, value, upstream):
    """The backward pass of the same kernel: exact but for delta, made of the output."""
    q, k, v, d_output = (x.astype(np.float64) for x in (query, key, value, upstream))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    output = largest_is_rounded(query, key, value).astype(np.float64)
    delta = (d_output * output).sum(-1, keepdims=True)
    d_scores = weights * (d_output @ v.swapaxes(-1, -2) - delta) * scale
    gradients = d_scores @ k, d_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ d_output
    return tuple(x.astype(np.float16) for x in gradients)


def test_so_may_be_delta_which_is_made_of_the_output():
    run = run_of(largest_is_rounded, "float16", "fused-fast-exp", vjp=delta_of_that)
    scores = score_tests.delta_of_gradients(run, score_problems.alike_values(run, 0))
    assert not broken(scores)
    assert all(abs(each.score.slope) > 0.2 * each.score.systematic for each in scores)


@pytest.mark.parametrize(("dtype", "units"), [("float32", 32), ("bfloat16", 0.2)])
def test_a_delta_that_is_off_is_seen(dtype, units):
    unit = Precision.fused(dtype).output.unit
    for share, expected in ((0.0, False), (units * unit, True)):
        planted = Planted(dtype, "fused", "delta", share)
        run = run_of(planted.attention, dtype, "fused", vjp=planted.attention_vjp)
        found = score_tests.delta_of_gradients(run, score_problems.alike_values(run, 0))
        assert bool(broken(found)) == expected


def accumulates_by_cutting_off(query, key, value):
    """float16 whose output is summed key after key, each sum cut off to 24 bits as tensor cores may."""
    q, k, v = (x.astype(np.float64) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True)).astype(np.float16).astype(np.float64)
    total = np.zeros((*value.shape[:2], query.shape[2], value.shape[3]))
    for j in range(key.shape[2]):
        total = total + weights[..., j, None] * v[..., j, None, :]
        mantissa, exponent = np.frexp(total)
        total = np.ldexp(np.trunc(mantissa * 2.0**24), exponent - 24)
    return (total / weights.sum(-1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (4, 640)])
def test_accumulators_that_cut_off_are_not_accused(queries, keys):
    run = run_of(accumulates_by_cutting_off, "float16", "fused")
    problems = score_problems.heads(run, 0, queries=queries, keys=keys)
    assert not broken(score_tests.size_of_output(run, problems))


def op_by_op(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Each result in half precision: products, scaled, shifted, exponentials, sums, quotients."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights @ value / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_code_that_rounds_after_every_operation_is_not_accused(dtype):
    run = run_of(op_by_op, dtype, "eager", arrays="torch")
    for seed in range(3):
        assert not broken(everything(run, seed))


def everything(run, seed):
    return [
        *score_tests.size_of_output(run, score_problems.heads(run, seed)),
        *score_tests.scale_of_output(run, score_problems.two_levels(run, seed)),
        *score_tests.size_of_gradients(run, score_problems.heads(run, seed, upstream=True)),
        *score_tests.delta_of_gradients(run, score_problems.alike_values(run, seed)),
        *score_tests.scale_of_gradients(run, score_problems.two_levels(run, seed, upstream=True)),
    ]


def test_a_normaliser_that_is_off_by_a_ten_thousandth_shows_in_long_rows_of_float32():
    def attention(query, key, value):
        scores = query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wrong = np.float32(1 - 1e-4) if key.shape[2] > 512 else np.float32(1)
        return weights @ value / (weights.sum(-1, keepdims=True) * wrong)

    run = run_of(attention, "float32", "plain")
    assert not broken(score_tests.size_of_output(run, score_problems.heads(run, 0)))
    long_rows = score_problems.heads(run, 0, queries=4, keys=640)
    assert ("size", "output") in broken(score_tests.size_of_output(run, long_rows))


LONG = {"queries": 4, "keys": 640}


def long_rows(implementation, dtype, model, seed=0):
    run = run_of(implementation, dtype, model)
    scores = score_tests.long_rows_of_output(run, score_problems.heads(run, seed, **LONG))
    return {parameter for parameter, _ in broken(scores)}


@pytest.mark.parametrize(
    ("dtype", "model", "units"),
    [("float32", "plain", 400), ("bfloat16", "fused", 2), ("bfloat16", "eager", 4)],
)
def test_one_tile_of_a_long_row_that_has_too_little_weight_is_seen_and_named(dtype, model, units):
    share = units * Precision.named(model, dtype).output.unit
    for planted, expected in ((0.0, set()), (share, {"weight of keys 512 to 527"})):
        attention = Planted(dtype, model, "far tile", planted).attention
        assert long_rows(attention, dtype, model) == expected


def running(order, curve=lambda x: 0 * x):
    """float32 tile after tile of 16 keys, in an order, with an exponential that errs by a curve, but not at zero."""

    def exponential(x):
        wrong = EXPONENTIAL * np.where(x == 0, 0, curve(x))
        return (np.exp(x.astype(np.float64)) * (1 + wrong)).astype(np.float32)

    def attention(query, key, value):
        scores = query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5)
        top = np.full((*scores.shape[:3], 1), -np.inf, np.float32)
        total, output = np.zeros_like(top), np.zeros((*scores.shape[:3], value.shape[3]), np.float32)
        for start in range(0, key.shape[2], 16)[::order]:
            here = scores[..., start : start + 16]
            old, top = top, np.maximum(top, here.max(-1, keepdims=True))
            weights, decay = exponential(here - top), exponential(old - top)
            total = total * decay + weights.sum(-1, keepdims=True)
            output = output * decay + weights @ value[..., start : start + 16, :]
        return output / total

    return attention


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_running_softmax_with_the_worst_exponential_is_not_accused_in_long_rows(order, sign):
    worst = running(order, lambda x: sign * np.where(x < -1, 1.0, -1.0))
    assert not long_rows(worst, "float32", "plain", seed=3)


def test_a_function_of_a_single_head_gets_its_heads_one_by_one():
    run = run_of(scaled(0.02), "bfloat16", "fused", requires=("B == 1", "H == 1", "G == 1"))
    problems = score_problems.two_levels(run, 0)
    assert len(problems) == score_problems.HEADS
    assert ("softmax scale", "output") in broken(score_tests.scale_of_output(run, problems))


def test_a_function_that_takes_whole_blocks_only_gets_longer_rows():
    run = run_of(scaled(0.02), "bfloat16", "fused", requires=("K % 64 == 0", "Q % 64 == 0"))
    problems = score_problems.two_levels(run, 0)
    assert {(x.sizes["Q"], x.sizes["K"]) for x in problems} == {(64, 64)}
    assert ("softmax scale", "output") in broken(score_tests.scale_of_output(run, problems))


def test_nothing_is_said_of_operands_in_tf32():
    assert score_tests.unfit(run_of(scaled(0.0), "float32", "tf32"))
    assert score_tests.unfit(run_of(scaled(0.0), "float32", "plain")) is None


def test_numbers_are_those_of_the_dtype_under_test():
    (problem,) = score_problems.heads(run_of(scaled(0.0), "bfloat16", "fused"), 1)
    assert problem.query.dtype == ml_dtypes.bfloat16
