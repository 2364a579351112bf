"""The planted errors of `benchmarks/`, and the search for the smallest that is seen."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.benchmarks import detection
from qkverify.benchmarks.planted_errors import BACKWARD, FORWARD, MODELS, Planted
from qkverify.rounding import Precision
from qkverify.rounding.formats import FORMATS
from qkverify.runs import score_problems
from qkverify.runs.run import Run

FLOAT32 = ("float32", "plain")


def results(planted, keys=640):
    rng = np.random.default_rng(0)
    query, key, value, upstream = (
        rng.standard_normal((1, 2, n, 16)).astype(np.float32) for n in (4, keys, keys, 4)
    )
    output = planted.attention(query, key, value)
    return [x.astype(np.float64) for x in (output, *planted.attention_vjp(query, key, value, upstream))]


@pytest.mark.parametrize(("dtype", "model"), MODELS)
def test_without_an_error_the_kernel_is_right_under_its_model(dtype, model):
    precision = Precision.named(model, dtype)
    run = Run(Planted(dtype, model, "scale", 0.0).implementation(), "cpu", dtype, precision=precision,
              gradient_precision=precision)  # fmt: skip
    run.begin_example()
    (problem,) = score_problems.heads(run, 0, upstream=True)
    assert (np.abs(run(problem).value - run.exact(problem)) <= run.bound(problem)[0].errors).all()
    gradients, exact_gradients = run.gradients(problem), run.exact_gradients(problem)
    bounds = run.gradient_bounds(problem)
    for name in ("query", "key", "value"):
        assert (np.abs(gradients[name].value - exact_gradients[name]) <= bounds[name].errors).all()


@pytest.mark.parametrize("error", [*FORWARD, *BACKWARD])
def test_an_error_moves_the_results_that_it_is_about(error):
    right, wrong = (results(Planted(*FLOAT32, error, share)) for share in (0.0, 0.1))
    moved = [not np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(right, wrong, strict=True)]
    assert moved[0] == (error in FORWARD)
    if error in BACKWARD:
        assert any(moved[1:])


def test_a_row_sum_that_is_too_large_makes_the_output_smaller_by_that():
    (right, *_), (wrong, *_) = (results(Planted(*FLOAT32, "normaliser", share)) for share in (0.0, 0.1))
    np.testing.assert_allclose(wrong * 1.1, right, rtol=1e-5, atol=1e-7)


def test_the_search_finds_the_smallest_size_within_a_factor_of_the_root_of_two():
    unit = FORMATS["float32"].unit
    for limit in (0.02, 1.0, 37.0, 1e6):
        found = detection.smallest(
            lambda planted, seed, to=limit * unit: planted.share >= to, FLOAT32, "scale"
        )
        assert limit <= found <= limit * 2**0.5


def test_a_judge_that_objects_to_right_code_and_one_that_sees_nothing_are_said():
    assert detection.smallest(lambda planted, seed: True, FLOAT32, "scale") == "objects to right code"
    assert detection.smallest(lambda planted, seed: False, FLOAT32, "scale") == "not seen"
    only_first = detection.smallest(lambda planted, seed: planted.share > 0 and seed == 0, FLOAT32, "scale")
    assert only_first == "not seen"


@pytest.mark.parametrize("judge", [detection.is_not_close, detection.exceeds_twice])
@pytest.mark.parametrize("error", ["far tile", "delta"])
def test_the_usual_comparisons_accept_right_code_in_float32_and_see_a_tile_or_delta_that_is_missing(
    judge, error
):
    assert not judge(Planted(*FLOAT32, error, 0.0), 0)
    assert judge(Planted(*FLOAT32, error, 1.0), 0)
