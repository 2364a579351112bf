"""The exponent p of time ~ size^p, and the interval in which it lies.

Small sizes show what a call costs before any work is done, so only the largest `FITTED` sizes are fitted: over them the work
grows 32-fold. p is the slope of a straight line through the logarithms of the shortest times. The shortest, because whatever else
the machine does only ever adds time, and to long calls more often than to short ones: on a busy machine the medians bend upwards.
The interval is the line's own, from what
the sizes leave beside it (Student's t with `FITTED` - 2 degrees of freedom). It was chosen over a bootstrap of the rounds, which
knows only how well each time repeats: times that bend because a matrix outgrows a cache repeat very well, and the interval would
be a hundredth wide around an exponent that the next size moves by a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from qkverify.results import Complexity
from qkverify.timing.statistics import CONFIDENCE

FITTED = 6
FEWEST_SIZES = 3  # two make a line without anything left beside it

Word = Literal["agrees", "undecided", "differs"]


class FittedExponent(NamedTuple):
    """An exponent with its interval, from the sizes `first` to `last`."""

    exponent: float
    low: float
    high: float
    first: int
    last: int

    def word(self, theory: float) -> Word:
        """Theory speaks of whole powers: it agrees where its own is the only one that lies nearest to all of the interval."""
        if theory - 0.5 < self.low and self.high < theory + 0.5:
            return "agrees"
        return "undecided" if self.low < theory + 0.5 and theory - 0.5 < self.high else "differs"


def growth(record: Complexity) -> FittedExponent | None:
    """Of the shortest times; None where fewer than three sizes were timed."""
    timed = [(n, min(times)) for n, times in zip(record.sizes, record.seconds, strict=True) if times]
    return fit([n for n, _ in timed], [seconds for _, seconds in timed])


def counted(record: Complexity) -> float | None:
    """The exponent of the counted multiply-adds over all sizes; None under three sizes."""
    fitted = fit(record.sizes, record.multiply_adds, last=len(record.sizes))
    return None if fitted is None else fitted.exponent


def crossing(first: Complexity, second: Complexity, *, counts: bool = False) -> float:
    """The size from which `first` takes longer than `second` (or multiplies more), for good: between two sizes times are taken as
    powers. Of the sizes that both have it is 0 where that is all, infinity where it is none, NaN where there are none."""
    (x, mine), (others_x, theirs) = _logarithms(first, counts=counts), _logarithms(second, counts=counts)
    if not x.size or not others_x.size:
        return math.nan
    sizes = np.union1d(x, others_x)
    sizes = sizes[(sizes >= max(x[0], others_x[0])) & (sizes <= min(x[-1], others_x[-1]))]
    above = np.interp(sizes, x, mine) - np.interp(sizes, others_x, theirs)
    before = np.flatnonzero(above <= 0)
    if not sizes.size or not before.size or before[-1] == len(sizes) - 1:
        return math.nan if not sizes.size else math.inf if before.size else 0.0
    left = int(before[-1])
    share = above[left] / (above[left] - above[left + 1])
    return math.exp(sizes[left] + share * (sizes[left + 1] - sizes[left]))


def _logarithms(record: Complexity, *, counts: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of the sizes that were timed, and of their shortest times or their multiply-adds."""
    each = zip(record.sizes, record.seconds, record.multiply_adds, strict=True)
    pairs = np.log(
        [(n, operations if counts else min(times)) for n, times, operations in each if times]
        or np.ones((0, 2))
    )
    return pairs[:, 0], pairs[:, 1]


def fit(sizes: Sequence[int], values: Sequence[float], *, last: int = FITTED) -> FittedExponent | None:
    """The line through the logarithms of the `last` largest sizes; None under three."""
    if len(sizes) < FEWEST_SIZES:
        return None
    x, y = np.log(np.array([sizes, values], dtype=np.float64)[:, -last:])
    away, freedom = x - x.mean(), len(x) - 2
    slope = float(away @ y / (away @ away))
    beside = y - y.mean() - slope * away
    error = math.sqrt(float(beside @ beside) / freedom / float(away @ away))
    reach = student(1 - (1 - CONFIDENCE) / 2, freedom) * error
    return FittedExponent(slope, slope - reach, slope + reach, sizes[-len(x)], sizes[-1])


def student(probability: float, freedom: int) -> float:
    """The quantile of Student's t for a probability of at least one half: its distribution function, halved until found."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, freedom) < probability else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _below(angle: float, freedom: int) -> float:
    """P(t <= sqrt(freedom) tan(angle)): Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    odd, square = freedom % 2, math.cos(angle) ** 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for i in range(odd + 2, freedom + 1, 2):
        total += term
        term *= square * (i - 1) / i
    between = math.sin(angle) * total
    return 0.5 + (angle + between) / math.pi if odd else 0.5 + between / 2
