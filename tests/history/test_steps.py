"""Steps in simulated series: none in noise, all in steps, the best fit against brute force, and thresholds that are derived."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qkverify.history import change_points
from qkverify.history.change_points import FALSE_PAGES, steps_of

NOISE = 0.02
PAGES = 100
MOST_FALSE = 5


def noise(cells: int, runs: int, seed: int) -> np.ndarray:
    return np.random.default_rng([cells, runs, seed]).normal(0, NOISE, (cells, runs))


def found_in(series: np.ndarray, interval_noise: float = 0.0) -> list[list[int]]:
    return steps_of(series, np.full(series.shape, interval_noise))[0]


@pytest.mark.parametrize(("cells", "runs"), [(1, 3), (1, 12), (10, 4), (10, 12), (40, 5)])
def test_pure_noise_has_no_step(cells: int, runs: int) -> None:
    false = sum(any(found_in(noise(cells, runs, seed))) for seed in range(PAGES))
    assert false <= MOST_FALSE  # FALSE_PAGES of them are expected


@pytest.mark.parametrize(("share", "interval_noise"), [(0.3, 0.0), (0.0, 3 * NOISE)])
def test_noise_of_which_some_cells_have_more_has_no_step_either(share: float, interval_noise: float) -> None:
    """Three times the noise in some cells: seen in their differences alone, or said by the intervals of the runs."""
    cells, runs = 10, 10
    loud = np.where(np.arange(cells)[:, None] < max(share, 0.3) * cells, 3.0, 1.0)
    reach = np.where(loud > 1, interval_noise, 0.0) * np.ones((cells, runs))
    false = sum(any(steps_of(noise(cells, runs, seed) * loud, reach)[0]) for seed in range(PAGES))
    assert false <= MOST_FALSE


@pytest.mark.parametrize("ratio", [1.10, 1 / 1.10])
def test_a_step_of_ten_per_cent_is_found_where_it_is(ratio: float) -> None:
    cells, runs, since = 10, 14, 8
    pages = []
    for seed in range(PAGES):
        series = noise(cells, runs, seed)
        series[3, since:] += np.log(ratio)
        pages.append(found_in(series))
    assert sum(bool(page[3]) for page in pages) >= 99
    assert sum(len(page[3]) == 1 and abs(page[3][0] - since) <= 1 for page in pages) >= 95
    assert (
        sum(page[3] == [since] for page in pages) >= 90
    )  # the best fit may give the run beside it to the other side
    assert sum(any(page[i] for i in range(cells) if i != 3) for page in pages) <= MOST_FALSE


def test_a_large_step_in_the_latest_run_is_found() -> None:
    series = noise(10, 6, 0)
    series[0, -1] += np.log(1.3)
    assert found_in(series)[0] == [5]


def test_there_and_back_are_two_steps_and_one_odd_run_is_none() -> None:
    series = noise(10, 14, 1)
    series[0, 5:9] += np.log(1.3)
    series[1, 6] += np.log(1.3)
    steps = found_in(series)
    assert steps[0] == [5, 9]
    assert steps[1] == []


def test_missing_runs_are_passed_over() -> None:
    series = noise(10, 14, 2)
    series[0, 8:] += np.log(1.2)
    series[0, [1, 5, 8, 12]] = np.nan
    series[1, :12] = np.nan  # two runs are too few
    series[2:5, :] = np.nan
    steps, scatter = steps_of(series, np.zeros(series.shape))
    assert steps[:5] == [[9], [], [], [], []]
    assert 0.5 * NOISE < np.nanmedian(scatter) < 2 * NOISE
    assert np.isfinite(scatter).tolist() == np.isfinite(series).tolist()


def test_two_runs_are_never_judged() -> None:
    assert found_in(np.array([[0.0, 5.0], [0.0, 0.01]])) == [[], []]


def test_series_that_never_change_have_no_step() -> None:
    assert found_in(np.ones((4, 9)) * np.arange(4)[:, None] / 3) == [[], [], [], []]


def test_a_wide_interval_of_a_run_counts_less() -> None:
    """The same jump, once in a run that knows its time well and once in one that does not."""
    series, interval_noise = noise(10, 6, 3), np.zeros((10, 6))
    series[:2, -1] += np.log(1.3)
    interval_noise[1, -1] = 0.5
    steps, scatter = steps_of(series, interval_noise)
    assert (steps[0], steps[1]) == ([5], [])
    assert scatter[1, -1] == 0.5


@pytest.mark.parametrize("penalty", [0.5, 4.0, 20.0])
def test_the_fit_is_the_best_there_is(penalty: float) -> None:
    runs = 7
    for seed in range(20):
        random = np.random.default_rng(seed)
        series, scatter = random.normal(0, 2, (1, runs)), random.uniform(0.5, 2, (1, runs))
        (starts,) = change_points._starts(series, scatter, penalty)
        assert cost(series[0], scatter[0], starts, penalty) == pytest.approx(
            min(cost(series[0], scatter[0], each, penalty) for each in every_fit(runs))
        )


def every_fit(runs: int) -> list[list[int]]:
    return [list(starts) for size in range(runs) for starts in itertools.combinations(range(1, runs), size)]


def cost(series: np.ndarray, scatter: np.ndarray, starts: list[int], penalty: float) -> float:
    edges, total = [0, *starts, len(series)], penalty * len(starts)
    for begin, end in itertools.pairwise(edges):
        weights, part = scatter[begin:end] ** -2.0, series[begin:end]
        total += float((weights * (part - np.average(part, weights=weights)) ** 2).sum())
    return total


def test_the_penalty_grows_with_what_is_searched() -> None:
    def penalty(cells: int, runs: int) -> float:
        pages = np.random.default_rng(0).standard_normal((change_points.SIMULATIONS, cells, runs))
        return change_points._penalty(pages, np.zeros((cells, runs)), change_points.Chance.of(pages))

    assert penalty(20, 12) < penalty(100, 12)
    assert penalty(1, 12) < penalty(1, 3)  # three runs of one series show little of the noise
    single = (
        change_points.NormalDist().inv_cdf(1 - FALSE_PAGES / 2) ** 2
    )  # one known place to look at, known noise
    assert penalty(5, 12) > single


def test_the_same_series_give_the_same_steps() -> None:
    series = noise(5, 8, 4)
    series[0, 4:] += 0.2
    assert [found_in(series) for _ in range(2)] == [found_in(series)] * 2
