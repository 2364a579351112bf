"""Steps in short noisy series: the piecewise constant fit of least squares with a penalty for each step.

A series is the logarithm of one cell's time over runs. The fit minimises the sum of squared deviations, in units of the noise,
plus a penalty for every step (optimal partitioning: Jackson et al., IEEE Signal Processing Letters 12, 2005; asv finds steps by
the same criterion), exactly, by dynamic programming over all series at once. A segment of one run in the middle is an odd run and
no step: it is set aside and the rest fitted again. One at the end may be a step of today.

The noise of a series is what its successive runs differ by. A few runs say little of that, so it is drawn towards that of all
series, the more the less they differ among themselves (empirical Bayes on the logarithm, the prior a normal distribution; what
the estimate itself scatters is simulated). At no point is it less than what that run's own interval says.

No threshold is picked. Whole pages of noise of that size are simulated and go through the same steps, the estimate of the noise
included. The penalty is the smallest at which no more than `FALSE_PAGES` of them show any step anywhere: it grows with the
number of series and runs, and with how little is known of the noise.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

FALSE_PAGES = 0.02  # of the pages on which nothing changed, those that name a step all the same
SIMULATIONS = 500  # the quantile at FALSE_PAGES rests on the 10 most extreme of them
FEWEST_RUNS = 3  # two runs differ or not, but show no noise to hold that against
LEAST = float(
    np.sqrt(np.finfo(float).eps)
)  # noise of a series without any: rounding must not look like a step
SPREAD_OF_DIFFERENCE = (
    NormalDist().inv_cdf(0.75) * 2**0.5
)  # the median |difference| of two normal numbers of deviation 1


def steps_of(series: Floats, interval_noise: Floats, *, seed: int = 0) -> tuple[list[list[int]], Floats]:
    """Where the level of each series changes, and the deviation of the noise at each of its points, in `series`' shape.

    `series` is (series, runs), NaN where a run has no value; `interval_noise` the deviation that a run's own interval gives its
    value, 0 where that is not known. A step is the index of the first run after it. None is looked for under `FEWEST_RUNS` runs.
    """
    known = np.isfinite(series)
    random = np.random.default_rng(seed)
    draws = random.standard_normal((SIMULATIONS, *series.shape))
    draws[:, ~known] = np.nan
    chance = Chance.of(draws)
    levels, spread = chance.levels(series[None])
    noise = np.where(known, np.maximum(levels[0], interval_noise), np.nan)
    if series.size == 0 or known.sum(axis=1).max() < FEWEST_RUNS:
        return [[] for _ in series], noise
    others = np.exp(
        spread * random.standard_normal((SIMULATIONS, len(series), 1))
    )  # series that differ as these do
    pages = draws * np.maximum(np.exp(chance.middle(series[None])) * others, interval_noise)
    return segmented(series, noise, _penalty(pages, interval_noise, chance)), noise


class Chance(NamedTuple):
    """What the logarithm of `_each` is on average, and its variance, for series of pure noise of deviation 1: (series, 1).

    The variance is infinite where a series has no differences, so that it says nothing.
    """

    mean: Floats
    variance: Floats

    @classmethod
    def of(cls, draws: Floats) -> Chance:
        logs = np.log(_each(draws))
        variance = logs.var(axis=0)
        return cls(logs.mean(axis=0), np.where(variance > 0, variance, np.inf))

    def middle(self, pages: Floats) -> Floats:
        """The log noise that the series of a page share: (pages, 1, 1)."""
        weights = 1 / self.variance
        logs = np.log(_each(pages)) - self.mean
        return np.asarray((logs * weights).sum(axis=1, keepdims=True) / max(weights.sum(), LEAST))

    def levels(self, pages: Floats) -> tuple[Floats, Floats]:
        """The noise of each series, (pages, series, 1), and by how much the log noise of series truly differs, (pages, 1, 1)."""
        logs, middle = np.log(_each(pages)) - self.mean, self.middle(pages)
        known = np.isfinite(self.variance)[:, 0]
        off = (logs - middle)[:, known] ** 2
        observed = off.sum(axis=1, keepdims=True) / max(1, off.shape[1] - 1)
        true = np.maximum(observed - self.variance[known].sum() / max(1, off.shape[1]), 0.0)
        return np.exp(middle + true / (true + self.variance) * (logs - middle)), np.sqrt(true)


def segmented(series: Floats, noise: Floats, penalty: float) -> list[list[int]]:
    """The first runs of all segments but the first, for each series, at this penalty, odd runs set aside."""
    series = series.copy()
    while True:
        segments = _starts(series, noise, penalty)
        odd = [
            (row, start)
            for row, starts in enumerate(segments)
            for start, after in pairwise(starts)
            if np.isfinite(series[row, start:after]).sum() == 1
        ]
        if not odd:
            return segments
        for row, start in odd:
            series[row, start] = np.nan


def _starts(series: Floats, noise: Floats, penalty: float) -> list[list[int]]:
    """The best fit of each series."""
    runs = series.shape[1]
    begins = _partition(series, noise, penalty)
    places = _packed(series, np.broadcast_to(np.arange(runs, dtype=float), series.shape))
    starts = []
    for row, begin in enumerate(begins):
        steps, end = [], runs
        while begin[end] > 0:
            end = int(begin[end])
            steps.append(int(places[row, end]))
        starts.append(steps[::-1])
    return starts


def _penalty(pages: Floats, interval_noise: Floats, chance: Chance) -> float:
    """The smallest penalty at which no more than `FALSE_PAGES` of these pages of noise, (pages, series, runs), name a step."""
    count, series, runs = pages.shape
    noise = np.maximum(chance.levels(pages)[0], interval_noise).reshape(-1, runs)
    rows, allowed = pages.reshape(-1, runs), int(count * FALSE_PAGES)
    single = _best_single(rows, noise).reshape(count, series).max(axis=1)
    low = float(
        np.sort(single)[-allowed - 1]
    )  # one step alone asks for so much; fits of several can only ask for more
    speaking = np.flatnonzero(_partition(rows, noise, low)[:, -1])
    where, high = speaking // series, 2 * float(single.max())
    if len(set(where)) <= allowed:
        return low
    for _ in range(20):
        middle = (low + high) / 2
        speak = _partition(rows[speaking], noise[speaking], middle)[:, -1] > 0
        low, high = (middle, high) if len(set(where[speak])) > allowed else (low, middle)
    return high


def _each(pages: Floats) -> Floats:
    """The noise of each series of each page by itself, (pages, series, 1): the deviation of normal numbers that differ so.

    By the lower median: of few differences one may be the step itself. `LEAST` where there are none.
    """
    count, series, runs = pages.shape
    rows = pages.reshape(-1, runs)
    ordered = np.sort(np.abs(np.diff(_packed(rows, rows), axis=1)), axis=1)  # NaN last
    known = np.isfinite(ordered).sum(axis=1)
    middle = ordered[np.arange(len(ordered)), np.maximum(known - 1, 0) // 2]
    return np.asarray(np.fmax(middle / SPREAD_OF_DIFFERENCE, LEAST)).reshape(count, series, 1)


def _partition(series: Floats, noise: Floats, penalty: float) -> npt.NDArray[np.int64]:
    """For each series and end, where the last segment of the best fit up to that end begins: (series, runs + 1).

    Series are shifted to the right, what is missing stands before them with a weight of zero and joins the first segment.
    """
    runs = series.shape[1]
    sums = _sums(series, noise)
    cost = np.full((runs + 1, len(series)), np.inf)
    cost[0] = -penalty
    begin = np.zeros((runs + 1, len(series)), dtype=np.int64)
    for end in range(1, runs + 1):
        for start in range(end):
            candidate = cost[start] + _deviance(sums, start, end) + penalty
            better = candidate < cost[end]
            cost[end][better] = candidate[better]
            begin[end][better] = start
    return begin.T


def _best_single(series: Floats, noise: Floats) -> Floats:
    """How much one step can lower the deviance of each series."""
    runs, sums = series.shape[1], _sums(series, noise)
    whole = _deviance(sums, 0, runs)
    gains = [whole - _deviance(sums, 0, middle) - _deviance(sums, middle, runs) for middle in range(1, runs)]
    return np.asarray(np.max(gains, axis=0))


def _sums(series: Floats, noise: Floats) -> Floats:
    """Cumulated weights, weighted values and weighted squares, runs first: (3, runs + 1, series)."""
    values = _packed(series, series).T
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isfinite(values), _packed(series, noise).T ** -2.0, 0.0)
    values = np.nan_to_num(values)
    sums = np.zeros((3, series.shape[1] + 1, len(series)))
    np.cumsum([weights, weights * values, weights * values**2], axis=1, out=sums[:, 1:])
    return sums


def _deviance(sums: Floats, start: int, end: int) -> Floats:
    """Squared deviations from the mean of a segment, in units of the noise."""
    weight, first, second = sums[:, end] - sums[:, start]
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = second - np.where(weight > 0, first**2 / weight, 0.0)
    return np.asarray(np.maximum(squares, 0.0))


def _packed(series: Floats, what: Floats) -> Floats:
    """`what` with the points that `series` lacks moved to the front, as NaN, the order kept."""
    order = np.argsort(np.isfinite(series), axis=1, kind="stable")
    moved = np.where(np.isfinite(series), what, np.nan)
    return np.asarray(np.take_along_axis(moved, order, axis=1))
