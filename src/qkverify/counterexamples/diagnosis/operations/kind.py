"""What the diagnosis of an operation other than attention consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.conditions import Condition
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

Array = np.ndarray
Compute = Callable[..., Any]
Mistakes = tuple[tuple[str, Compute], ...]
BASE: Mapping[str, float] = {"base": 10000.0}  # of the frequencies
LEFT = ("key cache", "value cache")  # what an operation that writes to its arguments leaves there


@dataclass(frozen=True)
class Example:
    """One call of another operation: positional arguments, options, the shape of the result.

    shape    of several results: their shapes by name
    told     what the function is not given and the computations are
    asked    the other way round
    judged   bool, in the shape of the result: where it counts; None: everywhere
    """

    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    told: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    judged: Array | None = None


@dataclass(frozen=True)
class Gradients:
    """The backward pass of an operation. `of` names the first arguments, by which it is differentiated.

    `exact` and the mistakes are called as the operation's own, with the upstream gradient as the last argument; they give the
    gradients by name. The texts complete "the gradients are ...".
    """

    of: tuple[str, ...]
    exact: Compute
    mistakes: Mistakes


@dataclass(frozen=True)
class OperationKind:
    """Another operation: examples to try, the reference, its mistakes, and what these may depend on.

    Reference and mistakes are called with the arguments, bounded, and the options. A mistake's text completes "the result equals
    ...". `updated` is the number of the first argument that the function writes to; what it leaves there is judged too (`LEFT`).
    """

    examples: Callable[[Run], list[Example]]
    exact: Compute
    mistakes: Mistakes
    conditions: tuple[Condition, ...] = ()
    gradients: Gradients | None = None
    updated: int | None = None


def normal(run: Run, seed: int, *shape: int, times: float = 1.0) -> Array:
    """Random numbers in the dtype of the run."""
    return np.asarray((np.random.default_rng(seed).standard_normal(shape) * times).astype(run.numpy_dtype))


def rounded(run: Run, number: float) -> Bounded:
    """A number that is no array: an implementation rounds it to its working precision."""
    return Bounded(number, abs(number) * run.precision.accumulate.unit, run.precision)


def other_layout(layout: str, second: str) -> str:
    """Of "interleaved" and a second layout the one that is not given."""
    return second if layout == "interleaved" else "interleaved"


def with_option(name: str) -> Callable[[Example], bool]:
    """The condition that an option is in use."""
    return lambda e: e.options.get(name) is not None and e.options[name] is not False


IN_HALVES: Condition = (
    "in the layout of halves",
    lambda e: e.options.get("layout", "interleaved") != "interleaved",
)
