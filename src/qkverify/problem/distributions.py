"""What fills an array: named distributions, each a function of a shape and one integer.

They are listed from simple to wild, because Hypothesis shrinks toward the first: a counterexample then has numbers that a
person can check. `digits` reads small numbers straight off the integer, base 8, so that shrinking the integer turns the
elements to zero one by one; where the array has more elements than digits, and in all others, the integer is a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

SEEDS = 2**24  # Hypothesis draws evenly up to here; from a wider range it would prefer small numbers
DIGITS = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0])

Fill = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


def digits(shape: tuple[int, ...], seed: int, base: int = 8) -> np.ndarray:
    """Integers in [0, base): the digits of `seed` where they suffice, else drawn with it; all zero for seed 0."""
    size = math.prod(shape)
    if seed == 0:
        return np.zeros(shape, dtype=np.int64)
    if base**size > SEEDS:
        return np.random.default_rng(seed).integers(0, base, size=shape)
    places = np.zeros(size, dtype=np.int64)
    for i in range(size):
        seed, places[i] = divmod(seed, base)
        if not seed:
            break
    return places.reshape(shape)


def _ramp(shape: tuple[int, ...]) -> np.ndarray:
    """0 .. 1 along the second axis from the end: the keys. Along the only one, where there is one."""
    if len(shape) == 1:
        return np.linspace(0.0, 1.0, shape[0])
    return np.broadcast_to(np.linspace(0.0, 1.0, shape[-2])[:, None], shape)


def _one_hot(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    filled = np.zeros(shape)
    if filled.size:
        at = rng.integers(0, shape[-1], size=(*shape[:-1], 1))
        np.put_along_axis(filled, at, 1.0, axis=-1)
    return filled


def _ties(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Every row is one of two: scores come in equal groups."""
    two = rng.standard_normal((2, shape[-1]))
    return two[rng.integers(0, 2, size=shape[:-1])]


def _spikes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Small numbers with one large row in every sixteen: the running maximum rises in every tile."""
    filled = rng.standard_normal(shape) * 0.1
    rows = filled if len(shape) > 1 else filled[:, None]
    rows[..., 15::16, :] = np.arange(1, len(range(15, rows.shape[-2], 16)) + 1)[:, None]
    return filled


def _head_and_tail(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A few large terms, then many that are each small beside their sum: an accumulator of few digits stops growing."""
    filled = 8.0 * np.exp2(-rng.integers(4, 13)) * (0.75 + 0.25 * rng.random(shape))
    if len(shape) > 1:
        filled[..., : max(1, shape[-2] // 5), :] = 8.0
    return np.asarray(filled)


def _counting(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """1, 0, 2, -1, 3, ...: whatever the seed is, so that a counterexample of random numbers shrinks to whole ones."""
    size = math.prod(shape)
    return np.resize(np.array([1.0, 0.0, 2.0, -1.0, 3.0, -2.0, 0.5]), size).reshape(shape)


DISTRIBUTIONS: Mapping[str, Fill] = {
    "counting": _counting,
    "ones": lambda shape, rng: np.ones(shape),
    "one-hot": _one_hot,
    "normal": lambda shape, rng: rng.standard_normal(shape),
    "uniform": lambda shape, rng: rng.random(shape),
    "ties": _ties,
    "sparse": lambda shape, rng: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
    "rising": lambda shape, rng: rng.standard_normal(shape) * 0.1 + 8.0 * _ramp(shape),
    "falling": lambda shape, rng: rng.standard_normal(shape) * 0.1 - 8.0 * _ramp(shape),
    "head and tail": _head_and_tail,
    "spikes": _spikes,
    "large": lambda shape, rng: rng.standard_normal(shape) * 10.0,
    "very negative": lambda shape, rng: -20.0 - rng.random(shape),
    "powers of two": lambda shape, rng: (
        np.exp2(rng.integers(-8, 5, size=shape)) * rng.choice([-1.0, 1.0], size=shape)
    ),
    "tiny": lambda shape, rng: rng.standard_normal(shape) * 1e-7,
    "signed zeros": lambda shape, rng: rng.choice([0.0, -0.0], size=shape),
    "huge": lambda shape, rng: rng.standard_normal(shape) * 150.0,
}
NAMES = ("digits", *DISTRIBUTIONS)


def _massive_channel(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Standard normal; one place of every row, the same in queries and keys, is 1,000 times the others: as in trained models
    ("Massive activations in large language models", Sun et al. 2024)."""
    filled = rng.standard_normal(shape)
    filled[..., shape[-1] // 2] *= 1000.0
    return np.asarray(filled)


def _at_most_one(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Of both signs, a half to one in size."""
    return np.asarray((0.5 + 0.5 * rng.random(shape)) * rng.choice([-1.0, 1.0], size=shape))


# Numbers at which a format or a softmax ends: few of them are enough, and not in every array at once.
EXTREMES: Mapping[str, Fill] = {
    "one massive channel": _massive_channel,
    "far below zero": lambda shape, rng: -100.0 - rng.random(shape),
    "subnormal": _at_most_one,  # times `unit`, as the next one
    "near the end": _at_most_one,
}


def unit(name: str, dtype: Any) -> float:
    """What the numbers of a distribution are multiplied by in a dtype: 1 unless they lie at an end of its format.

    There is room for sums: 2^12, 2^3 in float16, whose numbers end at 65,504, and 2^64 in float64, in which bounds are computed.
    """
    finfo: Any = ml_dtypes.finfo
    if name == "subnormal":
        return float(finfo(dtype).smallest_normal) * 0.5
    if name == "near the end":
        room = {"float16": 3, "float64": 64}.get(np.dtype(dtype).name, 12)
        return float(finfo(dtype).max) * 2.0**-room
    return 1.0


UNSEEDED = ("ones", "counting")  # the same whatever the generator


def fill(name: str, shape: tuple[int, ...], source: int | np.random.Generator) -> np.ndarray:
    """A float64 array of the named distribution, from a seed or from a generator; "digits" needs a seed."""
    if name == "digits" and isinstance(source, int):
        return np.asarray(DIGITS[digits(shape, source)])
    rng = np.random.default_rng(source)  # a generator stays itself
    return (DISTRIBUTIONS.get(name) or EXTREMES[name])(shape, rng)
