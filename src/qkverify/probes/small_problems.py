"""Problems that are small enough to be read, which tell one convention from another, and the answers of a function to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

Answer = TypeVar("Answer")


def answer(probe: Callable[[Run], Answer | None], run: Run) -> Answer | None:
    try:
        return probe(run)
    except Exception:  # the law that meets the same error reports it with its problem
        return None


def head_size(run: Run) -> int:
    """A head size that the implementation takes: the smallest from 1 up, as both key and value size."""
    sizes = {"B": 1, "H": 1, "G": 1, "Q": 2, "K": 3}
    return next(
        (
            d
            for d in (1, 2, 4, 8, 16, 32, 64, 128)
            if run.implementation.accepts({**sizes, "D": d, "E": d}) is None
        ),
        64,
    )


def small_problem(
    run: Run, *, queries: int = 2, keys: int = 3, batch: int = 1, seed: int | None = None, **options: Any
) -> Problem:
    """Zero scores unless `seed` is given, and values 1, 2, 4, ...: the output tells which keys were averaged."""
    size, dtype = head_size(run), run.numpy_dtype
    options = {**dict.fromkeys(run.implementation.always, True), **options}
    shape = (batch, 1, keys, size)
    if seed is None:
        query, key = np.zeros((batch, 1, queries, size), dtype), np.zeros(shape, dtype)
        value = np.broadcast_to(np.exp2(np.arange(keys))[:, None], shape).astype(dtype)
    else:
        rng = np.random.default_rng(seed)
        query = rng.standard_normal((batch, 1, queries, size)).astype(dtype)
        key, value = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    return Problem(query=query, key=key, value=value, **options)


def nearest(measured: float, meanings: Mapping[float, str]) -> str | None:
    """The meaning whose number is nearest to what was found; None for NaN."""
    return None if np.isnan(measured) else meanings[min(meanings, key=lambda number: abs(number - measured))]


def within(got: Bounded, exact: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return not (np.abs(got.value - exact) > got.errors).any()


def is_mean(output: float, values: np.ndarray) -> bool:
    """Whether an output is the mean of all values 1, 2, 4: nearer than half of the way to the mean of some of them."""
    return abs(output - float(values.astype(np.float64).mean())) < 1 / 12
