"""Axes of length zero are generated often enough for the smallest profiles to meet each of them."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from qkverify import problems

EXAMPLES = 400


def test_rows_without_keys_are_half_of_the_problems_with_empty_axes():
    lengths_of_zero: Counter[str] = Counter()

    @seed(1)
    @settings(max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(problems(zero=True, long=False, layouts=False))
    def count(problem):
        lengths_of_zero.update(letter for letter in "BQK" if problem.sizes[letter] == 0)

    count()
    assert lengths_of_zero["K"] > 0.4 * EXAMPLES
    assert lengths_of_zero["Q"] > 0.15 * EXAMPLES
    assert lengths_of_zero["B"] > 0.05 * EXAMPLES


def test_the_simplest_problem_has_no_empty_axis():
    sizes = []

    @settings(max_examples=1, database=None, deadline=None, phases=[Phase.generate])
    @given(problems(zero=True, long=False, layouts=False))
    def first(problem):
        sizes.append(problem.sizes)

    first()
    assert 0 not in sizes[0].values()
