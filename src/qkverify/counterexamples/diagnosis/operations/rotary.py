"""The mistakes of a rotary embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import (
    BASE,
    IN_HALVES,
    Array,
    Example,
    Mistakes,
    OperationKind,
    normal,
    other_layout,
)
from qkverify.reference.attention import stored
from qkverify.reference.positions import angles, joined, rotary, rotate
from qkverify.runs.run import Run

TABLES = (512, 1024, 2048, 4096, 8192)  # positions for which a table of angles may have been made
Turn = Callable[..., Any]  # x, positions, base and layout -> x turned


def _rotary_examples(run: Run) -> list[Example]:
    shapes = [(2, 3, 5, 4), (2, 2, 1, 8), (3, 1, 1, 6), (1, 2, 4, 2), (2, 4, 3, 6), (1, 3, 1, 4)]
    places = [np.arange(n[2]) + 3 for n in shapes]
    far = (
        (300, 515, 7, 700, 521),
        (1101, 2101, 999, 4103, 5001),
        (8203, 9001, 2077, 30, 5),
        (17, 8195, 6007, 9999, 260),
    )
    shapes += [(2, 2, 5, 6)] * len(far)
    places += [np.array(at) for at in far]
    return [Example((normal(run, i, *n), at), {"layout": layout}, n, told=BASE)
            for i, (n, at) in enumerate(zip(shapes, places, strict=True)) for layout in ("interleaved", "half")]  # fmt: skip


def turned(x: Any, positions: Array, *, base: Any, layout: str = "interleaved") -> Any:
    """The reference; whole numbers for positions."""
    return rotary(x, np.asarray(positions, np.float64), base=base, layout=layout)


def placed(change: Callable[[Array], Array]) -> Turn:
    """Turned by other positions."""
    return lambda x, at, **o: turned(x, change(at), **o)


def rounded_to(dtype: Any) -> Callable[[Array], Array]:
    return lambda at: at.astype(dtype).astype(np.float64)


def by_exponents(exponent: Callable[[int, Array], Array]) -> Turn:
    """Turned with frequencies base^-exponent, a function of (size, even columns)."""

    def turn(x: Any, at: Array, *, base: Any, layout: str = "interleaved") -> Any:
        size = x.shape[-1]
        angle = np.asarray(at, np.float64)[..., None] / base ** exponent(size, np.arange(0, size, 2))
        return rotate(x, np.cos(angle), np.sin(angle), layout)

    return turn


def _turned_by_head(x: Any, at: Array, **options: Any) -> Any:
    return turned(x, np.arange(x.shape[1])[:, None] + 0 * at, **options)


def _mixed_tables(x: Any, at: Array, *, base: Any, layout: str = "interleaved") -> Any:
    """Angles laid out for the other layout than the one by which the columns are paired."""
    angle = angles(at.astype(np.float64), x.shape[-1], base)
    (a, b), (angle_a, angle_b) = (
        _pairs(x, layout),
        _pairs(joined(angle, angle, other_layout(layout, "half")), layout),
    )
    return stored(
        joined(a * np.cos(angle_a) - b * np.sin(angle_a), b * np.cos(angle_b) + a * np.sin(angle_b), layout)
    )


def _pairs(x: Any, layout: str) -> tuple[Any, Any]:
    half = x.shape[-1] // 2
    return (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else (x[..., :half], x[..., half:])


def _put_elsewhere(x: Any, at: Array, *, base: Any, layout: str = "interleaved") -> Any:
    """The right pairs turned, and stored in the other layout."""
    return stored(
        joined(*_pairs(turned(x, at, base=base, layout=layout), layout), other_layout(layout, "half"))
    )


def _waves_exchanged(x: Any, at: Array, *, base: Any, layout: str = "interleaved") -> Any:
    angle = angles(at.astype(np.float64), x.shape[-1], base)
    return rotate(x, np.sin(angle), np.cos(angle), layout)


def unturned(x: Any, at: Array, *, base: Any, layout: str = "interleaved") -> Any:
    """Each pair turned by nothing."""
    return rotate(x, np.ones(1), np.zeros(1), layout)


TURNS: tuple[tuple[str, Turn], ...] = (
    ("a rotation in the other direction", placed(lambda at: -at)),
    ("a rotation that pairs the columns of the other layout, neighbours or halves",
     lambda x, at, *, base, layout="interleaved": turned(x, at, base=base, layout=other_layout(layout, "half"))),
    ("a rotation whose table of angles is laid out for neighbours and whose pairs for halves, or the other way round",
     _mixed_tables),
    ("a rotation of the right pairs, put together in the other layout", _put_elsewhere),
    ("a rotation by the number of the head instead of the position", _turned_by_head),
    ("a rotation that counts positions from 1", placed(lambda at: at + 1)),
    ("a rotation with sine and cosine exchanged", _waves_exchanged),
    ("a rotation with the base 1000 instead of 10000", lambda x, at, *, base, **o: turned(x, at, base=base * 0.1, **o)),
    ("a rotation with the exponents i / d of the pair i instead of 2 i / d", by_exponents(lambda d, even: even / 2 / d)),
    ("a rotation with the exponents 4 i / d of the pair i instead of 2 i / d", by_exponents(lambda d, even: 2 * even / d)),
    ("a rotation of every pair by the position itself, without the frequencies", by_exponents(lambda d, even: 0.0 * even)),
    ("its argument, not rotated", unturned),
    ("a rotation by positions that are rounded to bfloat16", placed(rounded_to(ml_dtypes.bfloat16))),
    ("a rotation by positions that are rounded to float16", placed(rounded_to(np.float16))),
    *((f"a rotation by a table of {n} positions, whose last one stands for all further ones",
       placed(lambda at, n=n: np.minimum(at, n - 1))) for n in TABLES),  # type: ignore[misc]
    *((f"a rotation by a table of {n} positions, which begins again after the last one",
       placed(lambda at, n=n: at % n)) for n in TABLES),  # type: ignore[misc]
)  # fmt: skip

MISTAKES: Mistakes = (
    *TURNS,
    ("a rotation that counts positions from 0", lambda x, at, **o: turned(x, np.arange(len(at)), **o)),
    ("a rotation by positions in reverse", lambda x, at, **o: turned(x, at[::-1], **o)),
    ("the rotation of the first batch entry, for all",
     lambda x, at, **o: turned(np.take(x, [0] * x.shape[0], 0), at, **o)),
)  # fmt: skip

KIND = OperationKind(_rotary_examples, turned, MISTAKES, (
    ("with one position", lambda e: e.shape[2] == 1), ("with one batch entry", lambda e: e.shape[0] == 1), IN_HALVES,
))  # fmt: skip
