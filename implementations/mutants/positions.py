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
