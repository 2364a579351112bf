"""What shares its parameters with an operation of ours and computes something else: no law is about it, and that is said."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from qkverify.contract import Implementation
from qkverify.errors import NothingVerified
from qkverify.runs.run import Run

ROWS, COLUMNS = 3, 5


def refused(implementation: Implementation) -> Implementation:
    """The implementation as it is. Raises NothingVerified for one whose operation was read off its parameters, where a plain call
    shows that it is another; whoever says which operation it is, is taken at their word."""
    if implementation.declared or "operation" in implementation.adapters:
        return implementation
    if implementation.operation == "softmax":
        _refuse_another_shape(implementation)
    if implementation.operation == "embedding":
        _refuse_plain_rows(implementation)
    return implementation


def _refuse_another_shape(implementation: Implementation) -> None:
    run = Run(implementation, dtype=implementation.dtypes[0])
    scores = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(run.numpy_dtype)
    result = _called(run, scores)
    if result is not None and result.shape != scores.shape:
        raise NothingVerified(
            f"{implementation.name} was taken for a softmax by its name or that of its first parameter, and gives shape "
            f"{result.shape} for scores of shape {scores.shape}: it is none, and qkverify has no laws for it. "
            "If it should be one, say --operation softmax"
        )


def _refuse_plain_rows(implementation: Implementation) -> None:
    run = Run(implementation, dtype=implementation.dtypes[0])
    table = np.random.default_rng(0).standard_normal((ROWS, COLUMNS + 1)).astype(run.numpy_dtype)
    tokens = np.array([[2, 0, 1, 1]], np.int32)
    result = _called(run, tokens, table)
    if result is not None and np.array_equal(result, table[tokens]):
        raise NothingVerified(
            f"{implementation.name} gives rows of the table as they are. The embedding that qkverify has laws for is sqrt(M) "
            "times the row plus the encoding of its position; without these there is nothing to verify. If it should have them, "
            "say --operation embedding"
        )


def _called(run: Run, *arrays: np.ndarray) -> np.ndarray | None:
    """What a plain call gives; None where it raises or gives no array: the laws report that."""
    native: list[Any] = [run.framework.from_numpy(x, "cpu") for x in arrays]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return np.asarray(run.framework.to_numpy(run.invoke(native, {})))
        except Exception:
            return None
