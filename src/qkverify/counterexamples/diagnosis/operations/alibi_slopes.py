"""The mistakes of ALiBi's slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Array, Example, OperationKind
from qkverify.reference.positions import alibi_slopes
from qkverify.rounding import Bounded, Precision
from qkverify.runs.run import Run

HEADS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 14, 16, 17, 20, 32, 33, 40, 64, 65, 71, 96, 128, 130, 144, 160)
LIMITS = (8, 16, 32, 64, 128)


def _examples(run: Run) -> list[Example]:
    return [Example((heads,), {}, (heads,), told={"precision": run.precision}) for heads in HEADS]


def _slopes(of: Callable[[int], Array]) -> Callable[..., Any]:
    """Powers with an exponent that is rounded once."""

    def compute(heads: int, *, precision: Precision) -> Any:
        logarithm = np.log(of(heads))
        return np.exp(Bounded(logarithm, np.abs(logarithm) * precision.accumulate.unit, precision))

    return compute


def _below(heads: int) -> int:
    """The largest power of two up to the number of heads."""
    return 1 << (heads.bit_length() - 1)


def _shared_after(limit: int) -> Callable[[int], Array]:
    return lambda heads: alibi_slopes(heads)[np.minimum(np.arange(heads), limit - 1)]


KIND = OperationKind(_examples, _slopes(alibi_slopes), (
    ("slopes 2^(-8 h / H), h from 1, for every number of heads H, also where it is no power of two",
     _slopes(lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / n))),
    ("slopes 2^(-8 h / H) with h from 0: the first one is 1", _slopes(lambda n: 2.0 ** (-8.0 * np.arange(n) / n))),
    ("slopes in which each head takes that of the head before it, the first one 1",
     _slopes(lambda n: np.concatenate([[1.0], alibi_slopes(n)[:-1]]))),
    ("slopes that are the first ones of the next power of two",
     _slopes(lambda n: alibi_slopes(_below(2 * n - 1))[:n])),
    ("slopes of the power of two below, continued at the same ratio",
     _slopes(lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / _below(n)))),
    ("slopes in falling order, where the published ones of a number between powers of two interleave",
     _slopes(lambda n: np.sort(alibi_slopes(n))[::-1])),
    ("slopes in rising order", _slopes(lambda n: np.sort(alibi_slopes(n)))),
    ("slopes of base e, exp(-8 h / H)", _slopes(lambda n: np.exp(np.log2(alibi_slopes(n))))),
    ("slopes 2^-h, whatever the number of heads", _slopes(lambda n: 2.0 ** -np.arange(1.0, n + 1))),
    *((f"slopes of which all heads after the first {n} share that of head {n}", _slopes(_shared_after(n))) for n in LIMITS),
), (("where the number of heads is a power of two", lambda e: e.arguments[0] == _below(e.arguments[0])),))  # fmt: skip
