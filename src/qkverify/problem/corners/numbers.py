"""Numbers at which a softmax or a format ends."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from qkverify.problem.corners import Seen, corner
from qkverify.rounding import FORMATS


@corner
def log_sum_exp_below_minus_88(seen: Seen) -> bool:
    """exp(lse) is 0 in float32."""
    return bool((seen.log_sum_exp < -88.8).any())


@corner
def log_sum_exp_above_88(seen: Seen) -> bool:
    """exp(lse) is infinite in float32."""
    return bool((seen.log_sum_exp > 88.8).any())


@corner(needs="upstream")
def low_scores_in_half_a_tile_of_128(seen: Seen) -> bool:
    """The padded half of the last tile has scores of 0, above all others, in the backward pass."""
    return seen.sizes["K"] % 128 == 64 and log_sum_exp_below_minus_88(seen)


@corner
def scores_past_float16(seen: Seen) -> bool:
    """A score above 65,504."""
    finite = seen.scores[np.isfinite(seen.scores)]
    return bool((np.abs(finite) > 65_504).any())


@corner
def one_key_takes_all_the_weight(seen: Seen) -> bool:
    """The best score leads by 20 and more."""
    if not seen.rows.size:
        return False
    two = np.partition(seen.rows, -2, axis=-1)[:, -2:]
    return bool((two[:, 1] - two[:, 0] > 20).any())


@corner
def ties_at_the_maximum(seen: Seen) -> bool:
    """Two keys with the best score of a row, and others below it."""
    top = seen.rows.max(-1, keepdims=True, initial=-np.inf)
    return bool(
        (((seen.rows == top).sum(-1) > 1) & ((seen.rows < top) & np.isfinite(seen.rows)).any(-1)).any()
    )


@corner
def rising_scores(seen: Seen) -> bool:
    """Eight scores and more that rise from key to key: the running maximum changes at each."""
    return seen.sizes["K"] >= 8 and bool((np.diff(seen.rows, axis=-1) > 0).all(-1).any())


@corner
def one_massive_channel(seen: Seen) -> bool:
    """One place of all keys is 100 times the others and more, as in trained models."""
    return any(_massive(seen.numbers[name]) for name in ("query", "key"))


def _massive(x: np.ndarray) -> bool:
    size = np.abs(x).mean(axis=(0, 1, 2)) if x.size else np.zeros(0)
    return size.size > 2 and np.sort(size)[-1] > 100 * np.sort(size)[-2] > 0


@corner
def keys_nearly_parallel(seen: Seen) -> bool:
    """Keys that differ in their third digit, in several places: all weights are nearly the same."""
    key = seen.numbers["key"]
    if key.shape[2] < 4 or key.shape[3] < 2:
        return False
    spread, size = key.std(axis=2), np.abs(key.mean(axis=2))
    return bool(((spread > 0) & (spread < 0.02 * size)).all(-1).any())


@corner
def values_of_one_sign(seen: Seen) -> bool:
    """Errors that all lean one way add up. Eight values and more, not all the same."""
    value = seen.numbers["value"]
    return value.size >= 8 and bool(((value > 0).all() or (value < 0).all()) and np.ptp(value) > 0)


@corner
def subnormal_numbers(seen: Seen) -> bool:
    """Below the smallest normal number of the format: flushed to zero by some."""
    finfo: Any = ml_dtypes.finfo
    smallest = float(finfo(seen.problem.query.dtype).smallest_normal)
    return any(bool(((x != 0) & (np.abs(x) < smallest)).any()) for x in seen.numbers.values())


@corner
def numbers_near_the_end_of_the_format(seen: Seen) -> bool:
    """Within a factor of 2^13 of the largest number: a sum or a square of them is infinite."""
    largest = FORMATS[seen.problem.query.dtype.name].huge
    return any(bool((np.abs(x) > largest * 2.0**-13).any()) for x in seen.numbers.values())


@corner
def only_powers_of_two(seen: Seen) -> bool:
    """Every product is exact: a result that is off is no rounding. Queries and keys, at least two kinds."""
    arrays = [seen.numbers[name] for name in ("query", "key")]
    return all(
        x.size > 1 and bool((np.abs(np.frexp(x)[0]) == 0.5).all()) and np.ptp(np.abs(x)) > 0 for x in arrays
    )


@corner
def queries_of_zero(seen: Seen) -> bool:
    """Every visible key weighs the same."""
    return not seen.numbers["query"].any()
