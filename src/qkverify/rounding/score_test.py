"""Whether errors lean the way that a parameter would move them: a score test with a stated probability of a false alarm.

Regress the errors of many results on the derivative of the exact result by a parameter. If the parameter is wrong by a small
share t, the errors are t times that derivative, and rounding beside; the slope is t. Of right code it is zero, up to chance and
up to what its arithmetic may do systematically.

The results fall into groups whose inputs were drawn independently, so the contributions n_i = <errors, derivative> of the groups
are independent, however errors within a group hang together. With sum S, V^2 = sum n_i^2 and a bound b_i on the mean of each:

    P(|S| > x (V + sqrt(sum b_i^2)) + sum b_i) <= 2 exp(-x^2 / 2)

for contributions that are symmetric about their means, whatever their distributions (B. Efron, Student's t-test under symmetry
conditions, JASA 64, 1969, with the triangle inequality for V). Nothing is estimated but V, so no count of groups is too small:
|S| <= sqrt(n) V, and fewer groups than x^2 can never break it. `REACH` is x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CHANCE = 1e-15  # of a false alarm in one test: a run of a million tests stays below 1e-9
REACH = math.sqrt(2.0 * math.log(2.0 / CHANCE))


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
    - `squares`: the sum of squared derivatives
    - `means`: how far from zero the mean of each contribution may be
    """
    total = float(squares.sum())
    if not total > 0:
        raise ValueError("the derivative is zero everywhere: no error leans with it")
    room = REACH * (np.linalg.norm(contributions) + np.linalg.norm(means)) + means.sum()
    return Score(float(contributions.sum()) / total, float(room) / total, float(means.sum()) / total)
