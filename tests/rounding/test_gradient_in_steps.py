"""The gradient of a softmax that is differentiated step by step: the formula's in exact arithmetic, and bounds of its own."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify import reference
from qkverify.probes import further_roundings
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Precision
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.runs.run import Run
from qkverify.verification.mutation_testing import planted

CLOSE = 1e-13  # float64 results that are equal but for rounding
OPTIONS = [{}, {"causal": True}, {"softcap": 2.0}, {"scale": -0.7}, {"bias": np.linspace(-1, 1, 7)}]


@pytest.mark.parametrize("divided", ["weights", "output"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "".join(options) or "plain")
def test_the_steps_give_the_gradients_of_the_formula(divided: str, options: dict) -> None:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    shapes = (2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 2), (2, 4, 5, 2)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    steps = reference.attention_vjp_in_steps(*arrays, **options, divided=divided)
    for name, gradient in reference.attention_vjp(*arrays, **options).items():
        np.testing.assert_allclose(steps[name], gradient, atol=CLOSE)


def test_the_steps_give_the_gradient_of_softmax_also_where_the_largest_score_is_not_alone() -> None:
    rng = np.random.default_rng(1)
    scores, upstream = rng.integers(-2, 3, (6, 9)).astype(float), rng.standard_normal((6, 9))
    formula = reference.softmax_vjp(reference.softmax(scores), upstream)
    np.testing.assert_allclose(reference.softmax_vjp_in_steps(scores, upstream), formula, atol=CLOSE)


def drawn_problem(seed: int, dtype: str) -> Problem:
    rng = np.random.default_rng(seed)
    batch, queries, keys, size = (
        int(rng.choice(n)) for n in ([1, 2], [1, 2, 5, 17], [1, 2, 7, 33, 100], [1, 2, 8])
    )
    magnitudes = 10.0 ** rng.integers(-8, 2, 4) if seed % 2 else np.array([3.0, 3.0, 1.0, 1.0])
    shapes = {"query": (batch, 1, queries, size), "key": (batch, 1, keys, size), "value": (batch, 1, keys, size),
              "upstream": (batch, 1, queries, size)}  # fmt: skip
    arrays = zip(shapes.items(), magnitudes, strict=True)
    return Problem(
        **{name: (rng.standard_normal(n) * m).astype(NUMPY_DTYPES[dtype]) for (name, n), m in arrays}
    )


def largest_margins(dtype: str, way: str) -> dict[str, float]:
    implementation = next(i for i in planted("controls") if i.name == "control-in-steps")
    run = Run(implementation, "cpu", dtype, {"softmax_gradient": way}, Precision.eager(dtype))
    largest = dict.fromkeys(("query", "key", "value"), 0.0)
    problems = [drawn_problem(seed, dtype) for seed in range(200)]
    for problem in (*problems, *further_roundings.collecting_maxima(run, 4)):
        run.begin_example()
        exact = run.exact_gradients(problem)
        for name, got in run.gradients(problem).items():
            with np.errstate(divide="ignore", invalid="ignore"):
                margins = np.where(
                    got.value == exact[name], 0.0, np.abs(got.value - exact[name]) / got.errors
                )
            largest[name] = max(largest[name], float(margins.max(initial=0.0)))
    return largest


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_autograd_stays_within_the_bound_of_the_steps_comes_near_it_and_needs_it(dtype: str) -> None:
    pytest.importorskip("torch")
    steps = largest_margins(dtype, "steps")
    assert 0.05 <= min(steps.values()) <= max(steps.values()) <= 1, steps
    assert max(largest_margins(dtype, "formula").values()) > 1
