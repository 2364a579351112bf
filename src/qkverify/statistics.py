"""What samples say: medians, intervals of ratios, and the word for a difference.

Two implementations are compared by pairs: in every round both ran within moments of each other, so what the
machine did in that round is in both times and cancels in the logarithm of their ratio. The ratio is the
exponential of the median log-ratio (one disturbed round moves it little), its interval a percentile bootstrap
over rounds.

A bootstrap knows only the scatter that it has seen. The A/A control (one implementation timed under two names
in the same rounds) shows what a difference of nothing looks like on this machine, and no difference within
the control's own reach is called one. Only NumPy is used, with a fixed seed, so that the same samples give
the same words everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from qkverify.results import Control, Timing

Word = Literal["faster", "slower", "same", "undecided"]

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST_ROUNDS = 3  # under three pairs an interval says nothing
QUIET = math.log(1.01)  # differences under 1 % are never called; a control within it is a quiet machine


class Interval(NamedTuple):
    """A ratio of times and the interval in which it lies with `CONFIDENCE`."""

    ratio: float
    low: float
    high: float


class Comparison(NamedTuple):
    """`word` says what the candidate is, `interval` its time over the baseline's, from `rounds` pairs."""

    word: Word
    interval: Interval
    rounds: int


def median(seconds: Sequence[float]) -> float:
    """The median, in the unit of its input; NaN of nothing."""
    return float(np.median(seconds)) if len(seconds) else math.nan


def spread(seconds: Sequence[float]) -> float:
    """The median distance from the median, as a fraction of the median; NaN of nothing."""
    middle = median(seconds)
    return median([abs(second - middle) for second in seconds]) / middle if len(seconds) else math.nan


def paired_ratio(candidate: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> Interval:
    """candidate / baseline of times measured in the same rounds, element by element.

    Fewer than three pairs give an interval from nothing to infinity.
    """
    ratios = np.log(np.asarray(candidate, float) / np.asarray(baseline, float))
    if ratios.size == 0:
        return Interval(math.nan, 0.0, math.inf)
    middle = math.exp(float(np.median(ratios)))
    if ratios.size < FEWEST_ROUNDS:
        return Interval(middle, 0.0, math.inf)
    draws = np.random.default_rng(seed).integers(ratios.size, size=(RESAMPLES, ratios.size))
    medians = np.median(ratios[draws], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Interval(middle, math.exp(float(low)), math.exp(float(high)))


def noise(controls: Iterable[Control]) -> float:
    """The largest |log ratio| that the controls' intervals reach, and never under that of 1 %."""
    edges = [edge for control in controls for edge in (control.low, control.high)]
    return max([QUIET, *(abs(math.log(edge)) if 0 < edge < math.inf else math.inf for edge in edges)])


def is_quiet(controls: Iterable[Control]) -> bool:
    """Whether every control's ratio lies within 1 % of one: differences of a few per cent can be judged."""
    return all(c.ratio > 0 and abs(math.log(c.ratio)) <= QUIET for c in controls)


def verdict(interval: Interval, band: float = QUIET) -> Word:
    """The word for a ratio of times, `band` being what the control says noise can do, as a log-ratio.

    A difference must lie beyond the band as a whole; "same" means within 1 %, however wide the band is.
    """
    low, high = (math.log(edge) if edge > 0 else -math.inf for edge in (interval.low, interval.high))
    if low > band:
        return "slower"
    if high < -band:
        return "faster"
    return "same" if low >= -QUIET and high <= QUIET else "undecided"


def compare(candidate: Timing, baseline: Timing, controls: Iterable[Control] = ()) -> Comparison:
    """Two timings of one case from one run: only rounds in which both were timed are paired."""
    theirs = dict(zip(baseline.rounds, baseline.seconds, strict=True))
    pairs = [(s, theirs[r]) for r, s in zip(candidate.rounds, candidate.seconds, strict=True) if r in theirs]
    interval = paired_ratio([mine for mine, _ in pairs], [other for _, other in pairs])
    return Comparison(verdict(interval, noise(controls)), interval, len(pairs))


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean of ratios: a factor of two and a factor of a half make one. NaN of nothing."""
    return float(np.exp(np.mean(np.log(ratios)))) if len(ratios) else math.nan
