"""How much processes scatter, learnt from all cases of a run: variances moderated by empirical Bayes.

Two or three processes say little of how much processes differ: Student's t with one degree of freedom reaches thirteen
standard errors. But a run has dozens of cases, and all of them say something of the same machine. What the median of a
process is expected to scatter by has two parts: w^2, from its own rounds (a bootstrap), and the square of a luck that
processes have, one for the whole run. What a case's medians do scatter by, s^2 of d degrees of freedom, is taken as that
expectation times a factor, and the factors of all cases as drawn around a common one, as in Smyth, "Linear models and
empirical Bayes methods for assessing differential expression" (2004): with f = s^2 / (luck^2 + w^2) the moderated

    (d0 f0 + d f) / (d0 + d)      has d0 + d degrees of freedom.

d0 and f0 are estimated from the run itself, by the mean and the variance of log f, and the luck is the one under which the
cases are most alike. Where cases scatter alike d0 is large and they help each other; where they do not it is small, and
each is judged by what it has itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qkverify.results import Scatter

FEWEST = 6  # cases from which something common is learnt
MOST_DEGREES = 50.0  # cases that differ no more than chance: beyond this more degrees change no interval
LEAST = 1e-4  # as a fraction: no clock tells a smaller difference, and log 0 is no number
LUCKS = (LEAST, *np.geomspace(1e-3, 0.3, 20))


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


def learnt(seen: Sequence[Seen]) -> Scatter | None:
    """What the comparisons of a run have in common; None of fewer than six with two processes and more."""
    told = [one for one in seen if one.degrees > 0]
    if len(told) < FEWEST:
        return None
    return max((_under(float(luck), told) for luck in LUCKS), key=lambda found: found.degrees)


def _under(luck: float, told: Sequence[Seen]) -> Scatter:
    """The common factor and its degrees of freedom, were this the luck of processes.

    log f = log phi + log(chi^2_d / d), whose mean is digamma(d / 2) - log(d / 2) and whose variance trigamma(d / 2): what
    varies beyond that is the cases'.
    """
    logs = [
        math.log(max(one.variance, LEAST**2) / (luck**2 + one.of_rounds))
        - digamma(one.degrees / 2)
        + math.log(one.degrees / 2)
        for one in told
    ]
    beyond = float(np.var(logs, ddof=1)) - float(np.mean([trigamma(one.degrees / 2) for one in told]))
    d0 = MOST_DEGREES if beyond <= trigamma(MOST_DEGREES / 2) else 2 * inverse_trigamma(beyond)
    factor = math.exp(float(np.mean(logs)) + digamma(d0 / 2) - math.log(d0 / 2))
    return Scatter(luck, factor, d0)


def moderated(seen: Seen, scatter: Scatter) -> Moderated:
    """A comparison's own variance with what the run knows of all."""
    expected = scatter.luck**2 + seen.of_rounds
    degrees = scatter.degrees + seen.degrees
    factor = (scatter.degrees * scatter.factor + seen.degrees * seen.variance / expected) / degrees
    return Moderated(factor * expected, degrees)


def digamma(x: float) -> float:
    """The derivative of log gamma at x > 0: carried up by digamma(x) = digamma(x + 1) - 1 / x, then the asymptotic series."""
    up = 0.0
    while x < 10:
        up, x = up - 1 / x, x + 1
    return up + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)


def trigamma(x: float) -> float:
    """The second derivative of log gamma at x > 0, in the same way."""
    up = 0.0
    while x < 10:
        up, x = up + 1 / x**2, x + 1
    return up + 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3) - 1 / (30 * x**5) + 1 / (42 * x**7)


def inverse_trigamma(y: float) -> float:
    """x with trigamma(x) = y > 0, by bisection of its logarithm: trigamma falls from infinity to 0."""
    low, high = 1e-6, 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if trigamma(middle) > y else (low, middle)
    return low
