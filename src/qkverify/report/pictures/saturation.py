"""Why scores are divided by sqrt(d_k): the softmax Jacobian, and what becomes of it as d_k grows.

The Jacobian is measured, not computed from its formula: with keys and values = identity and scale 1 the output is
softmax(query), and row i of the Jacobian is the gradient of the query for an upstream gradient of one at output i.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qkverify.contract import registry
from qkverify.problem.attention_problem import Problem
from qkverify.report.pictures.grid import numbered, rounded
from qkverify.results import Picture
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

IMPLEMENTATION = "numpy_textbook"
FOOTNOTE = '"Attention Is All You Need", section 3.2.1, footnote 4'
SCORES = np.array([2.0, 1.0, 0.0, -1.0, 2.5, 0.5, -2.0, 1.5])
SIZES = tuple(2**power for power in range(11))  # d_k
QUERIES, KEYS, SEED = 256, 64, 0
LINES = ("not scaled", "scaled by 1/√d_k")


class SaturationPoint(NamedTuple):
    """At one d_k: the means of squared scores and of the entropy as a share of log KEYS, the median of the Jacobian's norm."""

    variance: float
    entropy: float
    gradient: float


def measure() -> Iterator[Picture]:
    yield jacobian_picture()
    yield from scaling()


def jacobian(scores: np.ndarray) -> Bounded:
    """The Jacobian of the softmax at scores (n,), as the gradients of an implementation, with their bound: (n,n)."""
    count, run = len(scores), Run(registry.find(IMPLEMENTATION)[0], dtype="float64")
    identity = np.eye(count)[None, None]
    query = np.ascontiguousarray(np.broadcast_to(scores, (1, 1, count, count)))
    problem = Problem(query=query, key=identity, value=identity, upstream=identity, scale=1.0)
    return run.gradients(problem)["query"][0, 0]


def jacobian_picture() -> Picture:
    derivatives = np.asarray(jacobian(SCORES).value)
    weight = derivatives.sum(axis=-1, where=np.eye(len(SCORES), dtype=bool))
    largest = int(np.argmax(weight))
    return Picture(
        name="jacobian", group="jacobian", kind="signed", title="∂yᵢ/∂sₖ = yᵢ (δᵢₖ − yₖ) at the scores above the columns",
        finding="Positive on the diagonal, negative elsewhere, and every row sums to zero: a score can only take weight from "
        f"the others. The strongest entry is {derivatives.max():.3f}, of key {largest}; none can exceed 1/4.",
        source='softmax definition; "Attention Is All You Need", section 3.2.1', rows=numbered(len(SCORES)),
        columns=[f"{score:g}" for score in SCORES], row_axis="weight yᵢ", column_axis="score sₖ", values=rounded(derivatives),
        limit=round(float(np.abs(derivatives).max()), 3), made_by=[IMPLEMENTATION],
    )  # fmt: skip


def scaling() -> Iterator[Picture]:
    """Three charts over d_k; the rows are those of LINES, then what theory says where it says something."""
    lines = list(zip(*(measured(size) for size in SIZES), strict=True))
    unscaled, scaled = lines[0][-1], lines[1][-1]
    charts = (
        ("variance", "Variance of the scores", f"It grows as d_k does, to {unscaled.variance:.0f} at {SIZES[-1]}, and is near 1 "
         f"with the scale, {scaled.variance:.2f} at {SIZES[-1]}.", [float(size) for size in SIZES]),
        ("entropy", "Entropy of the weights, as a share of that of equal weights", "Unscaled attention ends up reading "
         f"one key: {unscaled.entropy:.2f} of the entropy is left at {SIZES[-1]}; scaled, {scaled.entropy:.2f}.", None),
        ("gradient", "Norm of the softmax Jacobian, what a gradient is multiplied by: median",
         f"It vanishes where the softmax is saturated: {unscaled.gradient:.2g} unscaled at {SIZES[-1]}, {scaled.gradient:.2g} "
         "scaled.", None),
    )  # fmt: skip
    for field, title, finding, theory in charts:
        values = [[getattr(at, field) for at in line] for line in lines] + ([theory] if theory else [])
        yield Picture(
            name=f"scaling-{field}", group="scaling", kind="lines", title=title, finding=finding, source=FOOTNOTE,
            rows=[*LINES, *(["d_k"] if theory else [])], columns=[str(size) for size in SIZES], column_axis="d_k",
            values=rounded(np.array(values), 9), made_by=[IMPLEMENTATION],
        )  # fmt: skip


@functools.cache
def measured(size: int) -> tuple[SaturationPoint, SaturationPoint]:
    """Unscaled and scaled: standard normal queries (QUERIES, one each), keys (KEYS each) of d_k = `size`."""
    numbers = np.random.default_rng((SEED, size))
    query = numbers.standard_normal((QUERIES, 1, 1, size))
    key = numbers.standard_normal((QUERIES, 1, KEYS, size))
    return described(query, key, 1.0), described(query, key, size**-0.5)


def described(query: np.ndarray, key: np.ndarray, scale: float) -> SaturationPoint:
    """Queries (B,1,1,D) and keys (B,1,K,D) at one scale, by the weights that an implementation gives."""
    identity = np.ascontiguousarray(np.broadcast_to(np.eye(KEYS), (QUERIES, 1, KEYS, KEYS)))
    weights = registry.find(IMPLEMENTATION)[0].function(query, key, identity, scale=scale)[:, 0, 0]  # (B,K)
    scores = (query @ key.swapaxes(-1, -2)) * scale
    logarithms = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    entropy = -(weights * logarithms).sum(-1) / math.log(KEYS)
    return SaturationPoint(
        float(np.mean(scores**2)), float(np.mean(entropy)), float(np.median(norms(weights)))
    )


def norms(weights: np.ndarray) -> np.ndarray:
    """The Frobenius norm of y_i (delta_ik - y_k), without the matrices: (..., n) -> (...)."""
    squares = weights**2
    others = squares.sum(-1, keepdims=True) - squares
    return np.asarray(np.sqrt((squares * ((1.0 - weights) ** 2 + others)).sum(-1)))


def variance_error(size: int) -> float:
    """The standard error of the unscaled `measured(size)[0].variance`, whose mean is `size`.

    Given the query, a score is normal with variance |q|^2: its square has mean |q|^2 and variance 2 |q|^4, and over the
    queries |q|^2 has mean d and variance 2 d, |q|^4 mean d^2 + 2 d.
    """
    return math.sqrt((2 * size + 2 * (size**2 + 2 * size) / KEYS) / QUERIES)
