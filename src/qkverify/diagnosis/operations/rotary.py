"""The mistakes of a rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.diagnosis.operations.kind import Array, Example, Operation, normal, other_layout
from qkverify.reference.attention import stored
from qkverify.reference.positions import angles, joined, rotary, rotate
from qkverify.runs import Run


def _rotary_examples(run: Run) -> list[Example]:
    shapes = [(2, 3, 5, 4), (2, 2, 1, 8), (3, 1, 1, 6), (1, 2, 4, 2), (2, 4, 3, 6), (1, 3, 1, 4)]
    return [Example((normal(run, i, *n), np.arange(n[2]) + 3), {"layout": layout}, n)
            for i, n in enumerate(shapes) for layout in ("interleaved", "half")]  # fmt: skip


def _turned(base: Any, x: Any, positions: Array, layout: str = "interleaved", sign: float = 1.0) -> Any:
    return rotary(x, sign * positions.astype(np.float64), base=base, layout=layout)


def _turned_by_head(base: Any, x: Any, positions: Array, layout: str = "interleaved") -> Any:
    return _turned(base, x, np.arange(x.shape[1])[:, None] + 0 * positions, layout)


def _mixed_tables(base: Any, x: Any, positions: Array, layout: str = "interleaved") -> Any:
    """Angles laid out for the other layout than the one by which the columns are paired."""
    half, angle = x.shape[-1] // 2, angles(positions.astype(np.float64), x.shape[-1], base)
    table = joined(angle, angle, other_layout(layout, "half"))
    cut = (
        (slice(0, None, 2), slice(1, None, 2))
        if layout == "interleaved"
        else (slice(half), slice(half, None))
    )
    (a, b), (one, two) = [x[..., c] for c in cut], [table[..., c] for c in cut]
    return stored(joined(a * np.cos(one) - b * np.sin(one), b * np.cos(two) + a * np.sin(two), layout))


ROTARY = Operation(
    _rotary_examples, _turned, (
        ("a rotation in the other direction", lambda base, x, at, layout: _turned(base, x, at, layout, sign=-1.0)),
        ("a rotation that pairs the columns of the other layout, neighbours or halves",
         lambda base, x, at, layout: _turned(base, x, at, other_layout(layout, "half"))),
        ("a rotation whose table of angles is laid out for neighbours and whose pairs for halves, or the other way round",
         _mixed_tables),
        ("a rotation by the number of the head instead of the position", _turned_by_head),
        ("a rotation that counts positions from 0", lambda base, x, at, **o: _turned(base, x, at - at[:1], **o)),
        ("the rotation of the first batch entry, for all",
         lambda base, x, at, **o: _turned(base, np.take(x, [0] * x.shape[0], 0), at, **o)),
        ("its argument, not rotated", lambda base, x, at, **o: rotate(x, np.ones(1), np.zeros(1), **o)),
    ), (("with one position", lambda e: e.shape[2] == 1), ("with one batch entry", lambda e: e.shape[0] == 1)))  # fmt: skip
