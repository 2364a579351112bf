"""The sign and the size of errors are measured so that a lean shows, and rounding to nearest does not."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from qkverify.contract import describe
from qkverify.verification.accuracy import bits_lost, measure
from qkverify.verification.checking import Cell


def kernel(store):
    def attention(query, key, value):
        q, k, v = (x.astype(np.float64) for x in (query, key, value))
        scores = q @ np.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return store(weights @ v / weights.sum(-1, keepdims=True), query.dtype)

    return attention


def rounded(x, dtype):
    return x.astype(dtype)


def cut_off(x, dtype):
    """bfloat16 by dropping the lower half of a float32."""
    bits = x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(ml_dtypes.bfloat16)


def accuracy(store, dtype="bfloat16"):
    implementation = describe(
        kernel(store), arrays="numpy", dtypes=(dtype,), requires=("G == H",), differentiable=False
    )
    return measure(Cell(implementation, "cpu", dtype))


def test_rounding_to_nearest_leans_nowhere_and_beats_the_textbook():
    measured = accuracy(rounded)
    assert abs(measured.lean) < 4 * measured.lean_error
    assert 0.45 < measured.positive < 0.55
    assert measured.ratio < 0.9


def test_cutting_off_leans_toward_zero_by_half_a_unit():
    measured = accuracy(cut_off)
    assert -0.55 < measured.lean < -0.45
    assert measured.lean < -4 * measured.lean_error


def test_float32_from_float64_is_nearer_than_a_textbook():
    assert accuracy(rounded, "float32").ratio < 0.8


def test_bits_lost_are_none_where_only_the_result_is_rounded_and_one_where_a_bit_is_cut_off():
    """Cutting off errs by up to one unit instead of half: the root of the mean square doubles."""
    assert abs(accuracy(rounded).bits_lost) < 0.01
    assert abs(accuracy(cut_off).bits_lost - 1) < 0.05


def test_bits_lost_are_unknown_of_what_is_not_finite():
    assert bits_lost(np.array([np.nan, 1.0]), np.array([0.1, 0.1])) is None


def test_nothing_is_said_of_float64():
    assert accuracy(rounded, "float64") is None
