"""What is exact of encodings and rotations in one run: the reference, with the bounds of the run and its own conventions.

Angles are computed in float32 at least, whatever the dtype: a position of 1000 in bfloat16 may be off by 2, a third of a turn
of the first pair, which no convention excuses. Their sines and cosines are rounded as every other result is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.reference.embedding import embedding as reference_embedding
from qkverify.reference.positions import alibi_slopes
from qkverify.reference.positions import positional_encoding as reference_encoding
from qkverify.reference.positions import rotary as reference_rotary
from qkverify.reference.positions_vjp import rotary_vjp
from qkverify.rounding import FLOAT32, Bounded, Precision
from qkverify.runs.run import Run

BASE = 10000.0


def positional_encoding(run: Run, length: int, dim: int, *, layout: str | None = None) -> Bounded:
    """(length, dim); the layout is the function's own if it is not given."""
    told = run.meant(layout=layout)
    encoding: Bounded = reference_encoding(length, dim, base=base_of(run), **told)
    return encoding


def rotary(run: Run, x: np.ndarray, positions: np.ndarray, *, layout: str | None = None) -> Bounded:
    """x (..., L, D) turned by positions (L,), or broadcast to (..., L)."""
    at, told = positions.astype(np.float64), run.meant(layout=layout)
    turned: Bounded = reference_rotary(run.bounded(x), at, base=base_of(run), **told)
    return turned


def rotary_gradient(
    run: Run, positions: np.ndarray, upstream: np.ndarray, *, layout: str | None = None
) -> Bounded:
    """The gradient of sum(upstream * rotary(x, positions)) in x."""
    precision, told = run.gradient_precision, run.meant(layout=layout)
    at, above = positions.astype(np.float64), run.bounded(upstream, precision)
    gradient: Bounded = rotary_vjp(at, above, base=base_of(run, precision), **told)
    return gradient


def embedding(
    run: Run, tokens: np.ndarray, table: np.ndarray, *, layout: str | None = None, padding: Any = None
) -> Bounded:
    """sqrt(M) table[token] + the encoding of its position, (B,L,M)."""
    root, told = table.shape[1] ** 0.5, run.meant(layout=layout, padding=padding)
    scale = Bounded(root, root * run.precision.accumulate.unit, run.precision)
    embedded: Bounded = reference_embedding(
        tokens, run.bounded(table), scale=scale, base=base_of(run), **told
    )
    return embedded


def slopes(run: Run, heads: int) -> Bounded:
    """Powers with an exponent that is rounded once, (H,): a slope 2^-a has a relative error of a ln 2 rounded, and its own."""
    exponent = np.log(alibi_slopes(heads))
    powers: Any = np.exp(Bounded(exponent, np.abs(exponent) * run.precision.accumulate.unit, run.precision))
    stored: Bounded = np.positive(powers)
    return stored


def base_of(run: Run, precision: Precision | None = None) -> Bounded:
    """The base of the frequencies, with the precision of the angles.

    The sines and cosines of a rotation are not returned but multiplied, so they are stored as elementwise results are.
    """
    precision = precision or run.precision
    turns = run.implementation.operation in ("rotary", "rotary_pair")
    output = precision.elementwise if turns else precision.output
    inner = FLOAT32 if run.semantics.get("angles") == "float32" else precision.accumulate
    return Bounded(BASE, 0.0, replace(precision, accumulate=inner, elementwise=inner, output=output))
