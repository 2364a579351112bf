"""How far results are from exact in practice, beside how far they may be: the sign of the error, and its size against a
textbook in the same precision.

A margin says how much of a bound is used in the worst case. Two kernels within it may still differ: one leans to one side, one
is ten times nearer. Both show on ordinary numbers: normal queries, keys and values of the sizes of a small model, no options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qkverify.errors import UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.results import Accuracy
from qkverify.rounding import FORMATS
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, prepare

SIZES = (
    (2, 2, 33, 65, 64),
    (1, 4, 64, 64, 64),
    (2, 1, 17, 129, 32),
    (1, 2, 128, 257, 64),
)  # B, H = G, Q, K, D = E
SEEDS = 6  # problems of each size
SMALLEST = 1e-3  # of a row's largest element: nearer to zero, the distance to the next number says nothing


def problems(dtype: np.dtype) -> Iterator[Problem]:
    """The problems that accuracy is measured on: the same for every implementation and in every run."""
    for batch, heads, queries, keys, size in SIZES:
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            query, key, value = (
                rng.standard_normal((batch, heads, length, size)).astype(dtype)
                for length in (queries, keys, keys)
            )
            yield Problem(query=query, key=key, value=value)


def measure(cell: Cell) -> Accuracy | None:
    """The sign and the size of a cell's errors; None where it refuses every problem, and in float64, in which exact is not known
    better than it is computed."""
    if cell.dtype == "float64":
        return None
    run = prepare(cell)
    errors, baselines, rounding, leans = [], [], [], []
    for problem in problems(run.numpy_dtype):
        if run.implementation.accepts(problem.sizes) is not None:
            continue
        try:
            got = run.values(problem).astype(np.float64)
        except UnsupportedCase:
            continue
        exact = run.exact(problem)
        errors.append(got - exact)
        baselines.append(textbook(problem).astype(np.float64) - exact)
        rounding.append(exact.astype(run.numpy_dtype).astype(np.float64) - exact)
        leans.append(signed_bias(got, exact, run))
    return _summary(cell, errors, baselines, rounding, leans) if errors else None


def textbook(problem: Problem) -> np.ndarray:
    """Attention op by op, each result rounded to the dtype under test; sums in float32 at least, as every library has them."""
    dtype = problem.query.dtype
    wide = np.float32

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype).astype(wide)

    query, key, value = (x.astype(wide) for x in (problem.query, problem.key, problem.value))
    scores = rounded(rounded(query @ np.swapaxes(key, -1, -2)) * wide(problem.sizes["D"] ** -0.5))
    exponentials = rounded(np.exp(rounded(scores - scores.max(-1, keepdims=True))))
    weights = rounded(exponentials / rounded(exponentials.sum(-1, keepdims=True)))
    return (weights @ value).astype(dtype)


def signed_bias(got: np.ndarray, exact: np.ndarray, run: Run) -> np.ndarray:
    """One number a row (B,H,Q): its mean error in units of the last place, away from zero; negative leans toward zero."""
    size = np.abs(exact)
    counted = size > SMALLEST * size.max(-1, keepdims=True)
    place = np.exp2(np.floor(np.log2(np.where(counted, size, 1.0)))) * 2 * FORMATS[run.dtype].unit
    signed = np.where(counted, (got - exact) * np.sign(exact) / place, 0.0)
    return np.asarray(signed.sum(-1) / np.maximum(counted.sum(-1), 1)).ravel()


def _summary(
    cell: Cell,
    errors: Sequence[np.ndarray],
    baselines: Sequence[np.ndarray],
    rounding: Sequence[np.ndarray],
    leans: Sequence[np.ndarray],
) -> Accuracy:
    error, baseline, least, rows = (
        np.concatenate([x.ravel() for x in arrays]) for arrays in (errors, baselines, rounding, leans)
    )
    moved = error[error != 0]
    return Accuracy(
        implementation=cell.implementation.name, device=cell.device, dtype=cell.dtype, elements=error.size,
        positive=float((moved > 0).mean()) if moved.size else None,
        lean=float(rows.mean()), lean_error=float(rows.std() / np.sqrt(rows.size)),
        ratio=_ratio(np.sqrt(np.mean(error**2)), np.sqrt(np.mean(baseline**2))),
        worst_ratio=_ratio(np.abs(error).max(), np.abs(baseline).max()),
        bits_lost=bits_lost(error, least),
    )  # fmt: skip


def bits_lost(error: np.ndarray, rounding: np.ndarray) -> float | None:
    """log2 of the root mean square of `error` over that of `rounding`, the error of the exact result rounded to the dtype.

    0 is as near as the dtype allows; 1 is twice as far. None where an error is not finite, or there is none to hold it against.
    """
    actual, least = (float(np.sqrt(np.mean(x**2))) for x in (error, rounding))
    return float(np.log2(actual / least)) if np.isfinite(actual) and min(actual, least) > 0 else None


def _ratio(error: float, baseline: float) -> float | None:
    return float(error / baseline) if baseline > 0 else None
