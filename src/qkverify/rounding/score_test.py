"""Whether errors lean the way that a parameter would move them: a score test with a stated probability of a false alarm.

Regress the errors of many results on the derivative of the exact result by a parameter. If the parameter is wrong by a small
share t, the errors are t times that derivative, and rounding beside; the slope is t. Of right code it is zero, up to chance and
up to what its arithmetic may do systematically.

The results fall into groups whose inputs were drawn independently, so the contributions n_i = <errors, derivative> of the groups
are independent, however errors within a group hang together. With a bound b_i on the mean of each:

    P(|sum (n_i - m_i)| > x sqrt(sum (n_i - m_i)^2)) <= 2 exp(-x^2 / 2)

for contributions that are symmetric about their means m_i, whatever their distributions (B. Efron, Student's t-test under
symmetry conditions, JASA 64, 1969). The means are not known, only |m_i| <= b_i: a result is wrong if no such means explain it.
Nothing else is estimated, so no count of groups is too small: fewer than x^2 can never be wrong. `REACH` is x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CHANCE = 1e-15  # of a false alarm in one test: a run of a million tests stays below 1e-9
REACH = math.sqrt(2.0 * math.log(2.0 / CHANCE))
STEPS = 200  # of r below, 3.5 % apart: the room is too large by less than 0.02 % of its chance


@dataclass(frozen=True)
class Score:
    """The slope of the errors on a derivative: by what share the parameter looks too large. `room` is what a right result may
    reach, and `systematic` the part of it that is not chance."""

    slope: float
    room: float
    systematic: float

    @property
    def holds(self) -> bool:
        return abs(self.slope) <= self.room  # of NaN too it says no


def score(contributions: np.ndarray, squares: np.ndarray, means: np.ndarray) -> Score:
    """The score of n independent groups, each argument (n,).

    - `contributions`: the sum of errors times derivatives in each group
    - `squares`: the sum of derivatives times what errors are multiplied by; squared, where that is the derivative
    - `means`: how far from zero the mean of each contribution may be
    """
    total = float(squares.sum())
    if not total > 0:
        raise ValueError("the derivative is zero everywhere: no error leans with it")
    room = _room(contributions, means)
    return Score(float(contributions.sum()) / total, room / total, float(means.sum()) / total)


def _room(contributions: np.ndarray, means: np.ndarray) -> float:
    """How far the sum may be from zero if some means explain it; a little more, never less.

    Some do if x |n - m| - sum(n - m) >= 0 for some |m_i| <= b_i, for a sum that is not negative. x |y| is the least of
    x (|y|^2 / r + r) / 2 over r, and for one r the best m_i is one end of its range or the other, each by itself.
    """
    leaning = np.sign(contributions.sum()) or 1.0
    ends = np.stack([leaning * contributions - means, leaning * contributions + means])
    most = float(np.linalg.norm(np.abs(contributions) + means))
    if not math.isfinite(most):
        return math.nan  # no number: no room explains it
    if most == 0:
        return 0.0
    lengths = most * np.geomspace(1e-3, 1.0, STEPS)[:, None, None]
    best = (REACH * ends**2 / (2 * lengths) - ends).max(1).sum(1) + REACH * lengths[:, 0, 0] / 2
    return float(abs(contributions.sum()) + best.min())
