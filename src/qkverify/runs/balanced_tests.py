"""What errors are multiplied by in score tests of the output, so that the error of an exponential cancels, whatever its curve.

Multiplied by the derivative, errors of weights may add up: 125 u of the softmax scale in float32. Here they are multiplied by
other numbers. Let weight P_ij of query i and key j be wrong by the relative error e_ij, arbitrary but bounded by what
`Precision` allows. The values of a key (in the gradient of value: the upstream gradients of a row) have signs of their own,
so that in the mean a sum over pairs of keys keeps each key with itself alone.

    size of the output       multiplied by M = sum_j V_j / |V_j|^2 in all rows. The mean of sum_ij P_ij e_ij V_j M is
                             sum_ij P_ij e_ij in the numerators, and as much in the row sums: zero for every e. What is left
                             is what divides a row, and the largest weight: its exponential may be rounded to 1 where it meets
                             the value, whatever it was in the row sum
    softmax scale            scores lie on two levels, `score_problems.two_levels`: 72 apart in float32. Multiplied by
                             M_i = sum_j P_ij (s_ij - c_i) V_j, with c_i such that what all weights of a row have in common
                             cancels. A scale too large by t moves the levels apart by 72 t; an exponential that errs by 20 u
                             moves each of them by 20 u at most, which is 0.56 u of the scale
                             Likewise for the gradient of value, where each key is weighted with |V_j|^2 as well

Constants that cannot be exact (log2 e, the scale, ln 2) are known numbers, and so are their errors. Of more than a tile of keys,
splits may be merged by further exponentials; their errors count as a row's or a weight's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qkverify.rounding import LN_2
from qkverify.runs.attention_steps import turned
from qkverify.runs.systematic_errors import Allowance

Array = np.ndarray
LOG2_E = 1 / LN_2
MERGING = (
    2  # exponentials in the weight of a split: in its log-sum-exp's sum, and of the difference from that
)


@dataclass(frozen=True)
class Balanced:
    """What the errors of a result are multiplied by, its derivative by the parameter's logarithm (both of its shape), and how far
    from zero the mean of each head's sum may be, (B,H)."""

    multiplier: Array
    derivative: Array
    room: Array


def size_of_output(allowance: Allowance, exact: Array) -> Balanced:
    """Of any problem whose values have signs independent of each other and of the scores."""
    steps = allowance.steps
    multiplier = (steps.value / (steps.value**2).sum(-1, keepdims=True)).sum(-2, keepdims=True)
    room = (allowance.row * np.abs((multiplier * exact).sum(-1))).sum(-1)
    room = room + _cut_off(allowance)
    room = room + 3 * allowance.precision.output.unit**2 * _total(np.abs(multiplier * exact))
    return Balanced(np.broadcast_to(multiplier, exact.shape), exact, room)


def _cut_off(allowance: Allowance) -> Array:
    """What accumulators that cut off in each addition do to the mean of each head's sum of M times the output, (B,H).

    What is cut off has the sign of the partial sum, sum_k P_k V_k, whose mean product with M is below one in a row; or that of
    the addend, and only this key's part of M has that sign in common with it.
    """
    steps = allowance.steps
    of_key = (np.abs(steps.value) / (steps.value**2).sum(-1, keepdims=True)).sum(-2, keepdims=True)
    of_addends = allowance.sums(1) * _total(of_key * (steps.weights @ np.abs(steps.value)))
    return np.asarray(of_addends + allowance.sums(steps.key.shape[2]) * steps.query.shape[2])


def scale_of_output(allowance: Allowance, exact: Array) -> Balanced:
    """Of a problem of two levels."""
    steps = allowance.steps
    counts = steps.weights**2 * (steps.value**2).sum(-1)[..., None, :]
    parted = _parted(counts, steps.scores)
    multiplier = (steps.weights * parted) @ steps.value
    derivative = (steps.weights * (steps.scores - steps.mean(steps.scores))) @ steps.value
    magnitude = steps.weights @ np.abs(steps.value)
    room = _of_weights(allowance, counts, parted)
    room = room + _of_result(allowance, multiplier, exact, 2 * steps.key.shape[2], magnitude)
    return Balanced(multiplier, derivative, room)


def scale_of_value_gradient(allowance: Allowance, exact: Array) -> Balanced:
    """Of a problem of two levels with normal upstream gradients."""
    steps = allowance.steps
    key_counts = (steps.value**2).sum(-1)[..., None, :]
    counts = steps.weights**2 * (steps.upstream**2).sum(-1, keepdims=True) * key_counts
    parted = _parted(counts, steps.scores)
    multiplier = turned(steps.weights * parted * key_counts) @ steps.upstream
    derivative = turned(steps.weights * (steps.scores - steps.mean(steps.scores))) @ steps.upstream
    magnitude = turned(steps.weights) @ np.abs(steps.upstream)
    room = _of_weights(allowance, counts, parted)
    room = room + _of_result(allowance, multiplier, exact, steps.query.shape[2], magnitude)
    return Balanced(multiplier, derivative, room)


def _parted(counts: Array, scores: Array) -> Array:
    """Scores less that number of each row for which an error that all its weights share does not count."""
    return np.asarray(scores - (counts * scores).sum(-1, keepdims=True) / counts.sum(-1, keepdims=True))


def _of_weights(allowance: Allowance, counts: Array, parted: Array) -> Array:
    """What errors of the weights may do to the mean of each head, (B,H)."""
    steps, precision = allowance.steps, allowance.precision
    error = allowance.exponential + allowance.merging
    # Rounding of scores and weights: its mean, and the variance, which the row sum has part in by the weight.
    error = error + allowance.curved * (1 + 2 * steps.weights) + 3 * allowance.nearest * (1 + steps.weights)
    if allowance.half:
        products = np.abs(steps.query) @ turned(np.abs(steps.key))
        error = error + allowance.sums(steps.key.shape[-1] + precision.folded) * abs(steps.scale) * products
    constants = known_constants(steps.scale)
    return _total(counts * np.abs(parted) * (error + constants * np.abs(parted)))


def _of_result(allowance: Allowance, multiplier: Array, exact: Array, terms: int, magnitude: Array) -> Array:
    """What accumulators of so many terms and the rounding of the result may do to it, (B,H)."""
    room = allowance.sums(terms) * _total(np.abs(multiplier) * magnitude)
    return room + 3 * allowance.precision.output.unit**2 * _total(np.abs(multiplier * exact))


def known_constants(scale: float) -> float:
    """By what share the constants of float32 code may make the scale look wrong: each is the nearest number of float32."""

    def rounding(number: float, times: int = 1) -> float:
        return times * abs(float(np.float32(number)) / number - 1)

    size = abs(scale)
    ways = (
        rounding(size) + rounding(LOG2_E),
        rounding(size * LOG2_E) + rounding(size),  # one constant, made of the exact scale or the rounded one
        rounding(math.sqrt(size), 2) + rounding(LOG2_E),  # in queries and in keys
        rounding(math.sqrt(size * LOG2_E), 2),
    )
    return max(ways) + rounding(LN_2)


def _total(x: Array) -> Array:
    return np.asarray(x.sum((-1, -2)))
