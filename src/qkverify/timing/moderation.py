"""How much processes scatter, learnt from all cases of a run: variances moderated by empirical Bayes.

Two or three processes say little of how much processes differ: Student's t with one degree of freedom reaches thirteen
standard errors. But a run has dozens of cases, and all of them say something of the same machine. What the median of a
process is expected to scatter by has two parts: w^2, from its own rounds (a bootstrap), and the square of a luck that
processes have, one for the whole run. What a case's medians do scatter by, s^2 of d degrees of freedom, is taken as that
expectation times a factor, and the factors of all cases as drawn around a common one, as in Smyth, "Linear models and
empirical Bayes methods for assessing differential expression" (2004): with f = s^2 / (luck^2 + w^2) the moderated

    (d0 f0 + d f) / (d0 + d)      has d0 + d degrees of freedom.

Where cases scatter alike d0 is large and they help each other; where they do not it is small, and each is judged by what it has
itself. Luck, d0 and f0 are those that make the variances of the run most likely: under the model s^2 is f0 (luck^2 + w^2) times
F of d and d0 degrees of freedom (Smyth, section 4). (Smyth estimates by the moments of log s^2. Of two processes d is 1, a
variance near zero is then common and its logarithm far away: simulated, d0 came out at 1 to 4 in a third of the runs
whose cases were all alike.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qkverify.results import Scatter

FEWEST = 6  # cases from which something common is learnt
LEAST = 1e-4  # as a fraction: no clock tells a smaller difference, and log 0 is no number
LUCKS = (LEAST, *np.geomspace(1e-3, 0.3, 20))
DEGREES = tuple(np.geomspace(1.0, 50.0, 12))  # beyond the last, more of them change no interval


class Seen(NamedTuple):
    """Of one comparison: the variance of its processes' medians, of so many degrees of freedom, and the mean variance
    that the rounds of a process explain."""

    variance: float
    degrees: float
    of_rounds: float


class Moderated(NamedTuple):
    """The variance of one process's median, as a sample of so many degrees of freedom would tell it."""

    variance: float
    degrees: float


def learnt(comparisons: Sequence[Seen]) -> Scatter | None:
    """What the comparisons of a run have in common; None of fewer than six with two processes and more."""
    told = [comparison for comparison in comparisons if comparison.degrees > 0]
    if len(told) < FEWEST:
        return None
    variance, d, of_rounds = np.array(told).T
    variance = np.maximum(variance, LEAST**2)
    ratios = {float(luck): variance / (luck**2 + of_rounds) for luck in LUCKS}
    candidates = [
        Scatter(luck, _factor(f, d, d0), d0) for luck, f in ratios.items() for d0 in map(float, DEGREES)
    ]
    return max(candidates, key=lambda candidate: _likelihood(variance, d, of_rounds, candidate))


def _factor(ratios: np.ndarray, d: np.ndarray, d0: float) -> float:
    """The most likely scale of ratios that are F of d and d0 degrees of freedom times it, by bisection: where the derivative of
    the likelihood, which falls with the scale, is zero."""
    low, high = math.log(ratios.min()), math.log(ratios.max())
    for _ in range(40):
        middle = (low + high) / 2
        u = d * ratios * math.exp(-middle) / d0
        rises = float(np.sum((d + d0) * u / (1 + u) - d)) > 0
        low, high = (middle, high) if rises else (low, middle)
    return math.exp((low + high) / 2)


def _likelihood(variance: np.ndarray, d: np.ndarray, of_rounds: np.ndarray, scatter: Scatter) -> float:
    """The logarithm of the density of these variances, but for what depends on d alone."""
    d0, expected = scatter.degrees, scatter.factor * (scatter.luck**2 + of_rounds)
    u = variance / expected
    of_degrees = sum(math.lgamma((degrees + d0) / 2) - math.lgamma(d0 / 2) for degrees in d.tolist())
    density = d / 2 * np.log(u / d0) - (d + d0) / 2 * np.log1p(d * u / d0)
    return of_degrees + float(np.sum(density))


def moderated(comparison: Seen, scatter: Scatter) -> Moderated:
    """A comparison's own variance with what the run knows of all."""
    expected = scatter.luck**2 + comparison.of_rounds
    degrees = scatter.degrees + comparison.degrees
    factor = (
        scatter.degrees * scatter.factor + comparison.degrees * comparison.variance / expected
    ) / degrees
    return Moderated(factor * expected, degrees)
