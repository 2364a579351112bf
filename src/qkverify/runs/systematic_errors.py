"""How far the mean error of a right kernel may be from zero, by its declared `Precision`.

A bound says what one error may be. Most of it cancels in the mean over many results; what does not is bounded here, for one
softmax row after the other. `F` is a sum of results, each times a given number (a derivative, in a score test); `sensitivity` is
dF / d score of every score. Rounding is to nearest. What it may do to the mean:

1. An exponential is wrong by up to `exp_ulps` and `fast_exp`, perhaps by the same curve for every key. The backward pass, which
   uses row sums and the output of the forward pass, has the same curve, or one of them has none to speak of (PyTorch's flash
   kernel on a CPU approximates forward only).
2. Constants are rounded once for all: log2 e in an exponential of base 2, which errs by u |s - max|, and a scale that is no power
   of two, by u |s|.
3. Where results are stored in half precision, accumulators may do their worst: n u of the sum of magnitudes for n terms, and
   twice that for units which cut off (tensor cores).
4. A rounding to nearest moves the mean of x by at most u^2 of the mean of |x|: the error is a sawtooth, whose mean under a smooth
   density is zero within a binade; what is left are the steps of its height at powers of two, u^2 / (4 ln 2) of the mean.
5. The rounding of a score has mean zero, but weights are convex in it: E exp(e) - 1 is half the variance of e. A rounding of x to
   nearest has a variance of at most (u x)^2 / 3 (even on +- u |x|). Likewise for queries and keys that are rounded after
   the scale or a mean went into them; there the errors of a row's scores hang together, so three times as much is allowed.

What underflows counts as `tiny`. Letters as everywhere: (B,H,Q,K) scores, query (B,H,Q,D), key (B,H,K,D), value (B,H,K,E).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qkverify.rounding import Precision
from qkverify.runs.attention_steps import Steps, turned

Array = np.ndarray
MERGING = (
    2  # exponentials in the weight of a split: in its log-sum-exp's sum, and of the difference from that
)
CUTS_OFF = 2.0  # an accumulator that cuts off errs by up to twice as much as one that rounds


@dataclass(frozen=True)
class Allowance:
    """What one precision allows on one problem. `first` is the relative error of each weight that may not cancel (1 to 3), and
    `curved` half the variance of each score (5), both (B,H,Q,K)."""

    precision: Precision
    steps: Steps
    first: Array
    curved: Array

    @classmethod
    def of(cls, precision: Precision, steps: Steps) -> Allowance:
        return cls(precision, steps, _first(precision, steps), _curved(precision, steps))

    @property
    def exponential(self) -> float:
        """The relative error of an exponential (1)."""
        return self.precision.exp_ulps * self.precision.accumulate.unit + self.precision.fast_exp

    @property
    def half(self) -> bool:
        """Whether results are stored in less than what sums are accumulated in."""
        return self.precision.output.unit > self.precision.accumulate.unit

    def sums(self, terms: int) -> float:
        """The relative error of a sum of so many terms (3)."""
        return CUTS_OFF * terms * self.precision.accumulate.unit if self.half else 0.0

    @property
    def step(self) -> float:
        """By what share of its magnitude an elementwise result may be off in the mean: two reciprocals or rescalings, and (4)."""
        return 2 * self.precision.accumulate.unit + self.precision.elementwise.unit**2

    @property
    def merging(self) -> float:
        """What merging splits by their log-sum-exps does to a weight, where there may be more than one: once, or at each tile."""
        merges = self.tiles - 1 if self.precision.in_sequence else min(self.tiles - 1, 1)
        if merges == 0:
            return 0.0
        steps = self.steps
        top = steps.scores.max(-1, keepdims=True)
        lse = np.abs(top + np.log(np.exp(steps.scores - top).sum(-1, keepdims=True))).max()
        return merges * MERGING * (self.exponential + self.precision.accumulate.unit * float(lse))

    @property
    def tiles(self) -> int:
        """Of the keys, at most."""
        keys: int = self.steps.key.shape[2]
        return math.ceil(keys / self.precision.tile)

    @property
    def nearest(self) -> float:
        """What rounding a weight to nearest, as an elementwise result and as an operand, does to its mean (4)."""
        return self.precision.elementwise.unit**2 + self.precision.operand.unit**2

    @property
    def operand(self) -> float:
        """The same of a computed operand of a matrix product."""
        return self.step + self.precision.operand.unit**2

    @property
    def row(self) -> Array:
        """By what share a whole row of the output may be off in the mean, (B,H,Q), however wrong the exponential.

        What divides it; and in half precision the largest weight of each tile, whose exponential, of zero, may be 1.0001 in the
        row sum, and is rounded to 1 where it meets the value.
        """
        steps, keys = self.steps, self.steps.key.shape[2]
        share = 2 * self.step + 3 * self.nearest + self.sums(keys) + self.merging
        if not self.half:
            return np.full(steps.weights.shape[:3], share)
        largest = np.sort(steps.weights)[..., -self.tiles :].sum(-1)  # at most one of each tile
        return np.asarray(share + self.exponential * largest + self.precision.operand.tiny * keys)

    @property
    def stored(self) -> float:
        """The same of what is returned, which may have been stored before: results of splits, gradients of single heads."""
        return 2 * self.step + 3 * self.precision.output.unit**2

    def _of_weights(self, *, backward: Array, forward: Array) -> Array:
        """What errors of weights may do, (B,H), given dF / d log weight in either pass: same curve, or none in one of them."""
        allowed = self.steps.weights * (self.first + self.merging + self.curved)
        cases = (backward + forward, backward, forward)
        return np.asarray(np.max([_total(allowed * np.abs(each)) for each in cases], axis=0))

    def gradient(self, name: str, multiplier: Array, exact: Array) -> Array:
        """Of F = sum(multiplier * gradient), of "query" (B,H,Q,D), "key" (B,H,K,D) or "value" (B,H,K,E): (B,H)."""
        if name == "value":
            return self._value_gradient(multiplier, exact)
        return self._score_gradient(name, multiplier, exact)

    def _value_gradient(self, multiplier: Array, exact: Array) -> Array:
        steps = self.steps
        along = steps.upstream @ turned(multiplier)
        room = self._of_weights(backward=along, forward=-steps.mean(along))
        room += _total((3 * self.operand * steps.weights + self.precision.operand.tiny) * np.abs(along))
        magnitude = turned(steps.weights) @ np.abs(steps.upstream)
        room += self.sums(steps.query.shape[2]) * _total(np.abs(multiplier) * magnitude)
        return room + self.stored * _total(np.abs(multiplier * exact))

    def _score_gradient(self, name: str, multiplier: Array, exact: Array) -> Array:
        steps, weights, d_weights = self.steps, self.steps.weights, self.steps.d_weights
        along = (
            multiplier @ turned(steps.key) if name == "query" else steps.query @ turned(multiplier)
        ) * steps.scale  # F = sum(d_scores * along)
        delta, mean = steps.mean(d_weights), steps.mean(along)
        parted, d_parted = along - mean, d_weights - delta
        both = d_parted * along
        # Forward errors are in the row sum, and in delta, which is made of the output.
        room = self._of_weights(backward=both, forward=-steps.mean(both) - mean * d_parted)
        room += _total(2 * self.curved * weights**2 * np.abs(d_parted * parted))
        room += (self.row[..., None] * np.abs(delta * mean)).sum((-1, -2))  # delta of the output
        # Roundings of d weights and delta, of their difference, and of what is made of it.
        room += _total(weights * 2 * self.step * (np.abs(d_weights) + np.abs(delta)) * np.abs(along))
        room += _total(
            (3 * self.operand * weights * np.abs(d_parted) + self.precision.operand.tiny) * np.abs(along)
        )
        room += self.precision.output.unit**2 * _total(
            weights * np.abs(delta * along)
        )  # delta of the stored output
        magnitude = np.abs(steps.upstream) @ turned(np.abs(steps.value))
        terms = self.sums(steps.value.shape[-1] + steps.key.shape[2])
        room += terms * _total(weights * (magnitude + steps.mean(magnitude)) * np.abs(along))
        terms = self.sums(max(steps.query.shape[2], steps.key.shape[2]))
        other = turned(np.abs(steps.key)) if name == "query" else turned(np.abs(multiplier))
        left = np.abs(multiplier) if name == "query" else np.abs(steps.query)
        room += terms * abs(steps.scale) * _total(weights * np.abs(d_parted) * (left @ other))
        return room + self.stored * _total(np.abs(multiplier * exact))


def _total(x: Array) -> Array:
    """The sum of each head."""
    return np.asarray(x.sum((-1, -2)))


def _first(precision: Precision, steps: Steps) -> Array:
    unit, size = precision.accumulate.unit, np.abs(steps.scores)
    shifted = steps.scores.max(-1, keepdims=True) - steps.scores
    rounded_scale = math.frexp(abs(steps.scale))[0] != 0.5
    error = precision.exp_ulps * unit + precision.fast_exp + unit * (shifted + rounded_scale * size)
    if precision.output.unit > unit:
        terms = CUTS_OFF * (steps.key.shape[-1] + precision.folded)
        error = error + terms * unit * abs(steps.scale) * (np.abs(steps.query) @ turned(np.abs(steps.key)))
    return np.asarray(error)


def _curved(precision: Precision, steps: Steps) -> Array:
    unit = precision.elementwise.unit
    shifted = steps.scores.max(-1, keepdims=True) - steps.scores
    squared = steps.query**2 @ turned(steps.key**2) * steps.scale**2
    # The product and what the scale makes of it, the difference from the maximum, query and key with the scale in them.
    variance = unit**2 / 3 * (2 * steps.scores**2 + shifted**2 + 3 * 2 * squared)
    if precision.centred:
        errors = precision.of_centred(steps.key)
        variance = variance + steps.query**2 @ turned(errors**2) * steps.scale**2
    return np.asarray(variance / 2)
