"""reference.softmax, its Jacobian, its gradient and the log-sum-exp against 50 digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf

from qkverify.reference import log_sum_exp, softmax, softmax_jacobian, softmax_vjp

from .reference_oracles import DIGITS, FUNCTION, U, off

SCORES = {
    "normal": np.random.default_rng(0).normal(size=(3, 7)),
    "large": 300 * np.random.default_rng(1).normal(size=(3, 7)),
    "huge": np.array([[8e307, -8e307, 7e307], [-8e307, -8e307, -8e307]]),
    "ties": np.ones((2, 5)),
    "one key": np.array([[3.0], [-1e5]]),
    "some invisible": np.array([[1.0, -np.inf, 2.0], [-np.inf, -np.inf, -700.0]]),
    "long": np.random.default_rng(2).normal(size=(2, 1000)),
}


def probabilities(scores: Any) -> Any:
    """softmax over the last axis, as mpf."""
    terms = np.array([[mp.exp(mpf(x)) for x in row] for row in scores], dtype=object)
    return terms / terms.sum(-1, keepdims=True)


def relative(scores: Any) -> Any:
    """The relative error of a weight (..., 1): two shifted exponents, two exps, a sum of n terms, a quotient.

    The spread of the visible scores bounds what the shift by the largest one leaves.
    """
    visible = np.where(np.isfinite(scores), scores, np.max(scores, axis=-1, keepdims=True))
    with np.errstate(over="ignore"):
        spread = np.minimum(np.ptp(visible, axis=-1, keepdims=True), 1500.0)  # exp is 0 from there on
    return np.expm1((2 * spread + 2 * FUNCTION + scores.shape[-1] + 1) * U)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_softmax_is_exp_over_the_sum_of_exps(scores: Any) -> None:
    got = softmax(scores)
    with mp.workdps(DIGITS):
        exact = probabilities(scores)
        # The smallest subnormal stands for weights that underflow.
        assert off(got, exact, relative(scores) * exact.astype(float) + 2.0**-1074) <= 1
        assert (
            off(softmax(scores.T, axis=0).T, exact, relative(scores) * exact.astype(float) + 2.0**-1074) <= 1
        )


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_log_sum_exp_is_the_logarithm_of_the_sum_of_exps(scores: Any) -> None:
    got = log_sum_exp(scores)
    with mp.workdps(DIGITS):
        exact = [mp.log(mp.fsum(mp.exp(mpf(x)) for x in row)) for row in scores]
        # log turns the sum's relative error into an absolute one; then its own, and that of adding the shift
        bound = relative(scores)[:, 0] + FUNCTION * U * np.log(scores.shape[-1]) + 2 * U * np.abs(got)
        assert off(got, exact, bound) <= 1


def test_a_slice_of_minus_infinity_weighs_nothing() -> None:
    scores = np.array([[-np.inf, -np.inf], [0.0, 0.0]])
    assert softmax(scores).tolist() == [[0, 0], [0.5, 0.5]]
    assert np.isneginf(log_sum_exp(scores)).tolist() == [True, False]
    assert softmax(np.zeros((2, 0))).shape == (2, 0)
    assert np.isneginf(log_sum_exp(np.zeros((2, 0)))).all()


def test_the_jacobian_is_y_times_delta_minus_y() -> None:
    got = softmax_jacobian(softmax(SCORES["normal"]))
    with mp.workdps(DIGITS):
        y = probabilities(SCORES["normal"])
        exact = y[:, :, None] * (np.eye(7, dtype=int) - y[:, None, :])
        grown = 2 * relative(SCORES["normal"])[..., None] + 3 * U
        assert (
            off(got, exact, grown * (y[:, :, None] * (np.eye(7, dtype=int) + y[:, None, :])).astype(float))
            <= 1
        )


def test_the_gradient_is_the_jacobian_applied() -> None:
    scores = SCORES["normal"]
    upstream = np.random.default_rng(3).normal(size=scores.shape)
    got = softmax_vjp(softmax(scores), upstream)
    with mp.workdps(DIGITS):
        y = probabilities(scores)
        delta = (y * upstream).sum(-1, keepdims=True)
        majorant = y * (np.abs(upstream) + (y * np.abs(upstream)).sum(-1, keepdims=True))
        grown = 2 * relative(scores) + (scores.shape[-1] + 3) * U
        assert off(got, y * (upstream - delta), grown * majorant.astype(float)) <= 1
