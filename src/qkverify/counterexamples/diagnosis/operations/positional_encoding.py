"""The mistakes of a sinusoidal encoding of positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import (
    BASE,
    IN_HALVES,
    Array,
    Example,
    OperationKind,
    other_layout,
)
from qkverify.reference.attention import stored
from qkverify.reference.positions import angles, joined, positional_encoding
from qkverify.rounding import Bounded
from qkverify.runs.run import Run


def _encoding_examples(run: Run) -> list[Example]:
    further = {"dtype": run.dtype, "device": run.device}
    return [Example((length, dim), {"layout": layout}, (length, dim), told=BASE, asked=further)
            for length, dim in ((5, 2), (7, 4), (3, 8), (9, 6), (20, 16), (2, 10))
            for layout in ("interleaved", "concatenated")]  # fmt: skip


def _encoded(
    sine: Callable[[int, Array], Any], cosine: Callable[[int, Array], Any] | None = None, *,
    of: Callable[[int], Array] = np.arange, swapped: bool = False,
) -> Callable[..., Any]:  # fmt: skip
    """The encoding whose frequencies are base^-exponent, the exponents functions of (dim, even columns).

    `of` gives the positions of a length; with `swapped` the cosines come before the sines.
    """

    def compute(length: int, dim: int, *, base: Any, layout: str = "interleaved") -> Any:
        position, even = of(length)[:, None], np.arange(0, dim, 2)
        first, second = (position / base ** exponent(dim, even) for exponent in (sine, cosine or sine))
        waves = np.sin(first), np.cos(second)
        return stored(joined(*(waves[::-1] if swapped else waves), layout))

    return compute


def _usual(dim: int, even: Array) -> Any:
    return even / dim


def _powers_of_e(dim: int, even: Array) -> Array:
    """-log(10000) / 2 dim // 2 is floored, to a whole number: the exponents to base 10000 of e^(even * that number)."""
    return even * (math.log(10000.0) / (2 * dim) * -1 // 2) / -math.log(10000.0)


def _exchanged(length: int, dim: int, *, base: Any, layout: str = "interleaved") -> Any:
    """exponent^(1 / base) instead of (1 / base)^exponent."""
    frequencies = (np.arange(0, dim, 2) / dim) ** (1 / base.value)
    angle = Bounded(np.arange(length)[:, None], 0.0, base.precision) * frequencies
    return stored(joined(np.sin(angle), np.cos(angle), layout))


def _degrees(length: int, dim: int, *, base: Any, layout: str = "interleaved") -> Any:
    angle = angles(np.arange(length), dim, base) * (math.pi / 180)
    return stored(joined(np.sin(angle), np.cos(angle), layout))


def _again(length: int, dim: int, *, base: Any, layout: str = "interleaved") -> Any:
    sines = np.sin(angles(np.arange(length), dim, base))
    return stored(joined(sines, sines, layout))


def _scaled(length: int, dim: int, **options: Any) -> Any:
    encoding = positional_encoding(length, dim, **options)
    return stored(
        encoding * Bounded(dim**0.5, dim**0.5 * encoding.precision.accumulate.unit, encoding.precision)
    )


KIND = OperationKind(
    _encoding_examples, positional_encoding, (
        ("an encoding whose frequencies have the base 1000 instead of 10000",
         lambda n, dim, *, base, **o: positional_encoding(n, dim, base=base * 0.1, **o)),
        ("an encoding with the exponent 2 i / dim for every column i: sine and cosine of a pair differ",
         _encoded(lambda dim, even: 2 * even / dim, lambda dim, even: 2 * (even + 1) / dim)),
        ("an encoding whose cosines have the exponents 1, 3, 5, ... over dim instead of 0, 2, 4 and so on",
         _encoded(_usual, lambda dim, even: (even + 1) / dim)),
        ("an encoding with the exponents i / dim of the pair i instead of 2 i / dim",
         _encoded(lambda dim, even: even / 2 / dim)),
        ("an encoding with the exponents 4 i / dim of the pair i instead of 2 i / dim",
         _encoded(lambda dim, even: 2 * even / dim)),
        ("an encoding with the exponents 2 i / (dim - 2) of the pair i instead of 2 i / dim",
         _encoded(lambda dim, even: even / max(dim - 2, 1))),
        ("an encoding whose frequencies rise from pair to pair: multiplied by 10000^(2 i / dim) instead of divided",
         _encoded(lambda dim, even: -even / dim)),
        ("an encoding whose exponents are rounded down to whole numbers: the frequencies are powers of e",
         _encoded(_powers_of_e)),
        ("an encoding with exponent^(1 / base) in the place of (1 / base)^exponent", _exchanged),
        ("an encoding that counts positions from 1", _encoded(_usual, of=lambda n: np.arange(n) + 1)),
        ("an encoding of positions that are divided by the length", _encoded(_usual, of=lambda n: np.arange(n) / max(n, 1))),
        ("an encoding of positions that are divided by the last one",
         _encoded(_usual, of=lambda n: np.arange(n) / max(n - 1, 1))),
        ("an encoding of the positions in reverse", _encoded(_usual, of=lambda n: np.arange(n)[::-1])),
        ("an encoding of the same position for every row", _encoded(_usual, of=lambda n: np.zeros(n))),
        ("an encoding whose angles are taken for degrees", _degrees),
        ("an encoding multiplied by sqrt(dim)", _scaled),
        ("an encoding whose cosines come before the sines", _encoded(_usual, swapped=True)),
        ("an encoding with sines in the place of the cosines", _again),
        ("an encoding in the other layout, interleaved or in halves",
         lambda n, dim, *, base, layout="interleaved": positional_encoding(
             n, dim, base=base, layout=other_layout(layout, "concatenated"))),
    ), (IN_HALVES,))  # fmt: skip
