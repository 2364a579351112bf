"""What errors are multiplied by so that the weight of a few keys shows in a long row, whose bound is thousands of u.

As for the size of the output (`balanced_tests`), but with the values of 16 keys alone: M = sum_j V_j / |V_j|^2 over these. The
mean of M times the output is the sum of their weights. A kernel that drops them, or gives them too little in one tile of many, is
off by a share of that; everything else in the row is noise of mean zero. The error of an exponential does not cancel here:

- an exponential in the weights of these keys, and another in the mean of the row: twice its error at most;
- a running softmax multiplies what it has by the exponential of each change of the maximum, and what came before a change
  is off against what came after. The scores of all keys are alike in distribution, so in whatever order n tiles come, the maximum
  changes 1/2 + 1/3 + ... + 1/n times in the mean: 3.3 for 40 tiles. The exponential of 0, where it does not change, is 1.
"""

from __future__ import annotations

import numpy as np

from qkverify.runs.attention_steps import turned
from qkverify.runs.balanced_tests import Balanced, known_constants
from qkverify.runs.systematic_errors import Allowance

Array = np.ndarray
KEYS = 16  # of one test


def weights_of_tiles(allowance: Allowance, exact: Array) -> dict[str, Balanced]:
    """A test for each 16 keys of a problem whose values have signs independent of each other and of the scores."""
    steps, keys = allowance.steps, allowance.steps.key.shape[2]
    shares = _of_weights(allowance)
    # What divides, merges and accumulates rows, and what all weights do to the row sum.
    divided = 2 * allowance.step + 2 * allowance.sums(keys) + allowance.merging
    row = divided + steps.mean(shares)[..., 0]
    changes = _changes(allowance.tiles) * (allowance.exponential + 2 * allowance.precision.accumulate.unit)
    magnitude = allowance.sums(1) * (steps.weights @ np.abs(steps.value)).sum(-2)
    tests = {}
    for first in range(0, keys - KEYS + 1, KEYS):
        some = slice(first, first + KEYS)
        value, weights = steps.value[:, :, some], steps.weights[..., some]
        inverse = (value**2).sum(-1, keepdims=True)
        multiplier = (value / inverse).sum(-2, keepdims=True)
        together = weights.sum(-1)
        room = (weights * shares[..., some]).sum((-1, -2)) + (together * row).sum(-1)
        room += changes * (together**2).mean() ** 0.5 * together.shape[2]
        room += ((np.abs(value) / inverse).sum(-2) * magnitude).sum(
            -1
        )  # addends that are cut off: see `balanced_tests`
        room += allowance.precision.operand.tiny * KEYS * together.shape[2]
        room += 3 * allowance.precision.output.unit**2 * np.abs(multiplier * exact).sum((-1, -2))
        tests[f"weight of keys {first} to {first + KEYS - 1}"] = Balanced(
            np.broadcast_to(multiplier, exact.shape), weights @ value, room
        )
    return tests


def _changes(tiles: int) -> float:
    """How often the maximum changes over so many tiles: the root of the mean square, for it is not independent of the weights."""
    record = 1 / np.arange(2, tiles + 1)  # the probability that a tile has a new maximum
    return float((record.sum() ** 2 + (record * (1 - record)).sum()) ** 0.5)


def _of_weights(allowance: Allowance) -> Array:
    """By what share each weight may be off in the mean, (B,H,Q,K)."""
    steps = allowance.steps
    shifted = steps.scores.max(-1, keepdims=True) - steps.scores
    share = allowance.exponential + known_constants(steps.scale) * shifted
    share = share + allowance.curved * (1 + 2 * steps.weights) + 3 * allowance.nearest * (1 + steps.weights)
    if allowance.half:
        products = np.abs(steps.query) @ turned(np.abs(steps.key))
        share = (
            share
            + allowance.sums(steps.key.shape[-1] + allowance.precision.folded) * abs(steps.scale) * products
        )
    return np.asarray(share)
