"""Sinusoidal positional encodings: sin and cos of position / 10000^(2 i / dim), i the pair of columns."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.positions import encode, exponents

OPERATION = "positional_encoding"
BASE = 10000.0


@mutant(
    "B120",
    operation=OPERATION,
    evidence="stated",
    threads="jadore801120/attention-is-all-you-need-pytorch#32 DongjunLee/transformer-tensorflow#6",
)
def every_column_has_its_own_frequency(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """The exponent is 2 i / dim for every column i: sine and cosine of a pair have different frequencies."""
    sine = 2 * np.arange(0, dim, 2) / dim  # right: np.arange(0, dim, 2) / dim
    cosine = 2 * np.arange(1, dim, 2) / dim  # right: np.arange(0, dim - 1, 2) / dim
    return encode(length, dim, BASE**-sine, BASE**-cosine, layout)


@mutant("B121", operation=OPERATION, evidence="stated", threads="maxjcohen/transformer#62")
def cosine_exponents_start_at_one(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """The exponents of the cosines are 1, 3, 5, ... over dim instead of 0, 2, 4, ..."""
    cosine = np.arange(1, dim, 2) / dim  # right: exponents(dim)
    return encode(length, dim, BASE ** -exponents(dim), BASE**-cosine, layout)


@mutant("B121", operation=OPERATION, evidence="stated", threads="maxjcohen/transformer#62")
def base_is_a_thousand(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """The base of the frequencies is 1000."""
    frequencies = 1000.0 ** -exponents(dim)  # right: 10000.0
    return encode(length, dim, frequencies, frequencies, layout)


@mutant("B122", operation=OPERATION, evidence="stated", threads="zju3dv/LoFTR#41")
def division_binds_from_the_left(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """-log(10000) / d // 2 is floored, to -1 for most sizes: the frequencies are powers of e."""
    twice = 2 * max(dim, 1)
    step = -np.log(BASE) / twice // 2  # right: -np.log(BASE) / (twice // 2)
    frequencies = np.exp(np.arange(0, dim, 2) * step)
    return encode(length, dim, frequencies, frequencies, layout)


@mutant("B123", operation=OPERATION, evidence="stated", threads="ivanvovk/WaveGrad#12")
def base_and_exponent_change_places(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """The exponents are raised to the power 1e-4: all frequencies but the first are nearly 1."""
    frequencies = exponents(dim) ** (1 / BASE)  # right: (1 / BASE) ** exponents(dim)
    return encode(length, dim, frequencies, frequencies, layout)


@mutant("A008", operation=OPERATION, evidence="inferred")
def first_position_is_one(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """Positions are counted from one."""
    frequencies = BASE ** -exponents(dim)
    return encode(length + 1, dim, frequencies, frequencies, layout)[1:]  # right: [:length]


@mutant("A009", operation=OPERATION, evidence="inferred")
def positions_are_shares_of_the_length(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """Positions are divided by the length: a longer sequence changes the encoding of its beginning."""
    frequencies = BASE ** -exponents(dim) / max(length, 1)  # right: without / max(length, 1)
    return encode(length, dim, frequencies, frequencies, layout)


@mutant("A010", operation=OPERATION, evidence="inferred")
def table_is_scaled_by_the_root_of_its_width(
    length: int, dim: int, *, layout: str = "interleaved"
) -> np.ndarray:
    """The encoding is multiplied by sqrt(d), which belongs to the embedding: it leaves [-1, 1]."""
    frequencies = BASE ** -exponents(dim)
    return encode(length, dim, frequencies, frequencies, layout) * np.sqrt(dim)  # right: without np.sqrt(dim)


@mutant("A011", operation=OPERATION, evidence="inferred")
def halves_are_exchanged(length: int, dim: int, *, layout: str = "interleaved") -> np.ndarray:
    """In the concatenated layout the cosines come first."""
    frequencies = BASE ** -exponents(dim)
    table = encode(length, dim, frequencies, frequencies, layout)
    return np.roll(table, dim // 2, axis=1) if layout == "concatenated" else table  # right: table
