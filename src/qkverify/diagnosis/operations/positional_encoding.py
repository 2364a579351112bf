"""The mistakes of a sinusoidal encoding of positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.diagnosis.operations.kind import Array, Example, Operation, other_layout
from qkverify.reference.attention import stored
from qkverify.reference.positions import joined, positional_encoding
from qkverify.rounding import Bounded
from qkverify.runs import Run


def _encoding_examples(run: Run) -> list[Example]:
    return [Example((length, dim), {"layout": layout}, (length, dim))
            for length, dim in ((5, 2), (7, 4), (3, 8), (9, 6), (20, 16))
            for layout in ("interleaved", "concatenated")]  # fmt: skip


def _encoded(
    sine: Callable[[int, Array], Any], cosine: Callable[[int, Array], Any], start: int = 0
) -> Callable[..., Any]:
    """The encoding whose frequencies are base^-exponent, the exponents functions of (dim, even columns)."""

    def compute(base: Any, length: int, dim: int, layout: str = "interleaved") -> Any:
        position = (np.arange(length) + start)[:, None]
        even = np.arange(0, dim, 2)
        angle = [position / base ** of(dim, even) for of in (sine, cosine)]
        return stored(joined(np.sin(angle[0]), np.cos(angle[1]), layout))

    return compute


def _powers_of_e(dim: int, even: Array) -> Array:
    """-log(10000) / 2 dim // 2 is floored, to a whole number: the exponents to base 10000 of e^(even * that number)."""
    return even * (math.log(10000.0) / (2 * dim) * -1 // 2) / -math.log(10000.0)


def _exchanged(base: Any, length: int, dim: int, layout: str = "interleaved") -> Any:
    """exponent^(1 / base) instead of (1 / base)^exponent."""
    frequencies = (np.arange(0, dim, 2) / dim) ** (1 / base.value)
    angle = Bounded(np.arange(length)[:, None], 0.0, base.precision) * frequencies
    return stored(joined(np.sin(angle), np.cos(angle), layout))


POSITIONAL_ENCODING = Operation(
    _encoding_examples, lambda base, n, dim, **o: positional_encoding(n, dim, base=base, **o), (
        ("an encoding whose frequencies have the base 1000 instead of 10000",
         lambda base, n, dim, **o: positional_encoding(n, dim, base=base * 0.1, **o)),
        ("an encoding with the exponent 2 i / dim for every column i: sine and cosine of a pair differ",
         _encoded(lambda dim, even: 2 * even / dim, lambda dim, even: 2 * (even + 1) / dim)),
        ("an encoding whose cosines have the exponents 1, 3, 5, ... over dim instead of 0, 2, 4, ...",
         _encoded(lambda dim, even: even / dim, lambda dim, even: (even + 1) / dim)),
        ("an encoding with the exponents i / dim of the pair i instead of 2 i / dim",
         _encoded(lambda dim, even: even / 2 / dim, lambda dim, even: even / 2 / dim)),
        ("an encoding with the exponents 2 i / (dim - 2) of the pair i instead of 2 i / dim",
         _encoded(lambda dim, even: even / max(dim - 2, 1), lambda dim, even: even / max(dim - 2, 1))),
        ("an encoding whose exponents are rounded down to whole numbers: the frequencies are powers of e",
         _encoded(_powers_of_e, _powers_of_e)),
        ("an encoding with exponent^(1 / base) in the place of (1 / base)^exponent", _exchanged),
        ("an encoding that counts positions from 1",
         _encoded(lambda dim, even: even / dim, lambda dim, even: even / dim, start=1)),
        ("an encoding in the other layout, interleaved or in halves",
         lambda base, n, dim, layout: positional_encoding(n, dim, base=base, layout=other_layout(layout, "concatenated"))),
    ))  # fmt: skip
