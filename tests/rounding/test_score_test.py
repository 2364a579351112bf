"""The score test: what it sees, what it lets be, and how often it is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.rounding.score_test import REACH, score

GROUPS, NOISE = 256, 0.02  # of the slope of one group


def contributions(rng, slope, groups=GROUPS):
    """Groups with a slope each, of heavy tails: a tenth of them are twenty times as noisy."""
    squares = rng.uniform(0.5, 2.0, groups)
    noise = NOISE * rng.standard_normal(groups) * np.where(rng.random(groups) < 0.1, 20, 1)
    return squares * (slope + noise), squares


def test_no_slope_holds_and_a_slope_of_a_percent_and_more_does_not():
    rng = np.random.default_rng(0)
    nothing, quiet = np.zeros(GROUPS), 0
    for _ in range(2000):
        quiet += score(*contributions(rng, 0.0), nothing).holds
    assert quiet == 2000
    squares = np.ones(GROUPS)
    leaning = squares * (0.02 + NOISE / 2 * rng.standard_normal(GROUPS))
    found = score(leaning, squares, nothing)
    assert not found.holds
    assert found.slope == pytest.approx(0.02, abs=4 * NOISE / 2 / 16)


def test_chance_keeps_to_its_bound():
    """At a reach where something can be counted: 2 exp(-x^2 / 2) bounds how often x is passed, whatever the tails."""
    rng, passed, reach = np.random.default_rng(1), 0, 2.0
    for _ in range(5000):
        each, _ = contributions(rng, 0.0)
        passed += abs(each.sum()) > reach * np.linalg.norm(each)
    assert 0 < passed / 5000 <= 2 * np.exp(-(reach**2) / 2)


def test_what_may_be_systematic_is_not_held_against_anybody():
    squares = np.ones(GROUPS)
    for slope in (0.01, -0.01):
        assert score(squares * slope, squares, squares * 0.01).holds
        assert not score(squares * slope, squares, squares * 0.001).holds


def test_few_groups_can_break_nothing():
    """Not even if all of them agree exactly: the sum is at most sqrt(n) times the norm."""
    few = np.ones(int(REACH**2))
    assert score(few, few, np.zeros(few.size)).holds
    many = np.ones(int(REACH**2) + 1)
    assert not score(many, many, np.zeros(many.size)).holds


@pytest.mark.parametrize("none", [np.nan, np.inf])
def test_a_number_that_is_none_holds_nowhere(none):
    squares = np.ones(GROUPS)
    assert not score(np.where(np.arange(GROUPS) == 3, none, 0.0), squares, squares).holds


def test_the_room_is_the_largest_sum_that_some_means_explain():
    """Among means that may be, drawn and at the ends, none explains a sum that is not held to be right."""
    rng, told = np.random.default_rng(4), set()
    for lean in np.linspace(0.0, 3.0, 13):
        means = rng.uniform(0.0, 1.0, GROUPS)
        values = lean + rng.standard_normal(GROUPS)
        explained = any(
            (values - m).sum() <= REACH * np.linalg.norm(values - m)
            for share in np.linspace(0, 1, 21)
            for m in (means * share, np.minimum(means, np.maximum(values, 0) * share))
        )
        holds = score(values, np.ones(GROUPS), means).holds
        assert holds or not explained
        told.add(holds)
    assert told == {True, False}


def test_a_derivative_of_zero_is_refused():
    with pytest.raises(ValueError, match="zero everywhere"):
        score(np.ones(3), np.zeros(3), np.zeros(3))
