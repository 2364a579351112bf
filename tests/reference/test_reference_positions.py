"""reference.positional_encoding, rotary and embedding against 50 digits, alibi_slopes against the published ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf

from qkverify.reference import alibi_slopes, embedding, positional_encoding, rotary

from .reference_oracles import DIGITS, FUNCTION, U, off

BASES = [10000.0, 500000.0, 2.0]


def angle_and_bound(position: int, pair: int, dim: int, base: float) -> tuple[Any, float]:
    """position / base^(2 pair / dim), and how far its sine and cosine may be off in float64.

    The exponent e is rounded once, which the power turns into e log(base) roundings; then the power and the
    quotient. Sine and cosine do not enlarge an error of the angle, and make one of their own.
    """
    exponent = mpf(2 * pair) / dim
    angle = mpf(position) / mpf(base) ** exponent
    roundings = float(exponent) * abs(np.log(base)) + FUNCTION + 1
    return angle, float(abs(angle) * mp.expm1(roundings * U)) + FUNCTION * U


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("length", "dim", "start"), [(5, 4, 0), (3, 6, 1_000_003), (1, 64, 511), (4, 2, -2)])
def test_the_encoding_is_sine_and_cosine_of_the_scaled_position(
    length: int, dim: int, start: int, base: float
) -> None:
    got = positional_encoding(length, dim, start=start, base=base)
    with mp.workdps(DIGITS):
        for row, pair in np.ndindex(length, dim // 2):
            angle, bound = angle_and_bound(start + row, pair, dim, base)
            assert off(got[row, 2 * pair], mp.sin(angle), bound) <= 1
            assert off(got[row, 2 * pair + 1], mp.cos(angle), bound) <= 1


def test_the_first_row_is_zeros_and_ones() -> None:
    assert positional_encoding(1, 6).tolist() == [[0, 1, 0, 1, 0, 1]]


def test_the_concatenated_layout_has_the_sines_first() -> None:
    interleaved = positional_encoding(7, 10)
    halves = np.concatenate([interleaved[:, 0::2], interleaved[:, 1::2]], axis=1)
    assert (positional_encoding(7, 10, layout="concatenated") == halves).all()


def test_a_later_start_continues_the_encoding() -> None:
    assert (positional_encoding(9, 8)[4:] == positional_encoding(5, 8, start=4)).all()


def test_an_encoding_may_be_empty_but_not_odd() -> None:
    assert positional_encoding(0, 4).shape == (0, 4)
    assert positional_encoding(3, 0).shape == (3, 0)
    with pytest.raises(ValueError, match="5 must be even"):
        positional_encoding(3, 5)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_rotary_multiplies_each_pair_as_a_complex_number(layout: str, base: float) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    positions = np.array([0, 1, 7, 100_000])
    got = rotary(x, positions, base=base, layout=layout)
    with mp.workdps(DIGITS):
        for b, h, row, pair in np.ndindex(2, 3, 4, 3):
            first, second = (2 * pair, 2 * pair + 1) if layout == "interleaved" else (pair, pair + 3)
            angle, bound = angle_and_bound(int(positions[row]), pair, 6, base)
            a, b_ = x[b, h, row, first], x[b, h, row, second]
            turned = mp.mpc(a, b_) * mp.expj(angle)
            # two products of a number and a sine or cosine, each rounded, and their sum
            limit = (abs(a) + abs(b_)) * (bound + 2 * U) * (1 + U)
            assert off(got[b, h, row, first], turned.real, limit) <= 1
            assert off(got[b, h, row, second], turned.imag, limit) <= 1


def test_rotary_takes_positions_of_each_batch_entry() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    positions = np.array([[0, 1, 2, 3], [7, 5, 3, 1]])
    got = rotary(x, positions[:, None])
    assert (got[1] == rotary(x[1], positions[1])).all()


def test_the_base_is_ten_thousand_unless_it_is_given() -> None:
    assert (positional_encoding(3, 4) == positional_encoding(3, 4, base=10000.0)).all()
    x, positions = np.ones((3, 4)), np.arange(3)
    assert (rotary(x, positions) == rotary(x, positions, base=10000.0)).all()


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [0.5 * h for h in range(1, 17)]),
        (3, [4, 8, 2]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_alibi_slopes_are_those_of_the_paper(heads: int, exponents: list[float]) -> None:
    """Section 3 of the paper for powers of two; 3 and 12 as its released code interleaves them."""
    expected = np.array([2.0**-e for e in exponents])
    np.testing.assert_array_max_ulp(alibi_slopes(heads), expected, maxulp=1)


def test_no_heads_have_no_slopes() -> None:
    assert alibi_slopes(0).shape == (0,)


@pytest.mark.parametrize("padding", [None, [0, 2]])
def test_an_embedding_is_a_scaled_word_plus_the_encoding_of_its_position(padding: list[int] | None) -> None:
    tokens, table = np.array([[2, 0, 1, 2], [1, 1, 2, 0]]), np.random.default_rng(1).standard_normal((3, 6))
    got = embedding(tokens, table, padding=None if padding is None else np.array(padding))
    with mp.workdps(DIGITS):
        for b, place, column in np.ndindex(*got.shape):
            position = max(place - (padding or [0, 0])[b], 0)
            angle, bound = angle_and_bound(position, column // 2, 6, 10000.0)
            word = mpf(table[tokens[b, place], column]) * mp.sqrt(6)
            roundings = 4 * U * (abs(float(word)) + 1.0)  # of the root, the product, the encoding and the sum
            exact = word + (mp.sin(angle) if column % 2 == 0 else mp.cos(angle))
            assert off(got[b, place, column], exact, bound + roundings) <= 1


def test_padding_before_a_sequence_changes_nothing_of_it() -> None:
    table = np.random.default_rng(1).standard_normal((3, 4))
    padded = embedding(np.array([[0, 0, 2, 1]]), table, padding=np.array([2]), layout="concatenated")
    assert (padded[:, 2:] == embedding(np.array([[2, 1]]), table, layout="concatenated")).all()
