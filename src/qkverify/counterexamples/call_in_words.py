"""The call of another operation that broke a law, in its numbers: what attention's `Problem.describe` is for attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qkverify.contract.operations import DESCRIBED
from qkverify.problem.attention_problem import PRINTED, show
from qkverify.runs.run import Run

FIRST = 8  # numbers of an array that is too large to be printed


def said_by_the_call(name: str, value: Any, run: Run) -> bool:
    """Whether a value that a law drew need not stand beside its first call: the call shows it, or what was made from it.

    Seeds, sizes and magnitudes are what numbers are made from. Words say which of several things was done, and stay.
    """
    return not isinstance(value, str) or name in run.requests[0][1]


def call_in_words(run: Run) -> list[str]:
    """The first call of the failed example: its operation, then a line for each argument. Nothing if the call is not kept."""
    if not run.requests or run.implementation.operation not in DESCRIBED:
        return []
    arguments, options = run.requests[0]
    names = (
        *DESCRIBED[run.implementation.operation].parameters,
        *(f"argument {i + 1}" for i in range(len(arguments))),
    )
    given = {**dict(zip(names, arguments, strict=False)), **options}
    lines = [f"{name} {words}" for key, value in given.items() for name, words in _in_words(key, value)]
    return [f"{run.implementation.operation}({', '.join(given)})", *lines]


def _in_words(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A value by its numbers; of a mapping, each entry by its own name."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _in_words(f"{name}[{key!r}]", part)
    elif isinstance(value, np.ndarray) and value.size > PRINTED:
        yield name, f"{show(value)}, the first {show(value.reshape(-1)[:FIRST])}"
    else:
        yield name, show(value) if isinstance(value, np.ndarray) else repr(value)
