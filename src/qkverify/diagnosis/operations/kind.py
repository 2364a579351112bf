"""What the diagnosis of an operation other than attention consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.diagnosis.conditions import Condition
from qkverify.runs import Run

Array = np.ndarray


@dataclass(frozen=True)
class Example:
    """One call of another operation: positional arguments, options, the shape of the result."""

    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """Another operation: examples to try, the reference, its mistakes, and what these may depend on.

    Reference and mistakes are called with the base of the frequencies, the bounded arguments and the options.
    """

    examples: Callable[[Run], list[Example]]
    exact: Callable[..., Any]
    mistakes: tuple[tuple[str, Callable[..., Any]], ...]
    conditions: tuple[Condition, ...] = ()


def normal(run: Run, seed: int, *shape: int, times: float = 1.0) -> Array:
    """Random numbers in the dtype of the run."""
    return np.asarray((np.random.default_rng(seed).standard_normal(shape) * times).astype(run.numpy_dtype))


def other_layout(layout: str, second: str) -> str:
    """Of "interleaved" and a second layout the one that is not given."""
    return second if layout == "interleaved" else "interleaved"
