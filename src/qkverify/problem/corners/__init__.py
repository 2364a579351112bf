"""Corners: what a generated problem may have on which a kernel can fail alone. One function each; `coverage` counts them.

A corner is a function of a `Seen` problem in a file of this folder, marked `@corner`; its name in words is the corner's, its
docstring says what breaks there. `@corner(needs="upstream")` is one that only problems with an upstream gradient have, and
`@corner(needs="no upstream")` one that only the others have. Adding one edits no other file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, overload

import numpy as np

from qkverify.problem.attention_problem import LAYOUTS, Problem
from qkverify.reference.scores import scores
from qkverify.reference.softmax import log_sum_exp


@dataclass(frozen=True)
class Corner:
    """One corner: its name in words, its file, and whether a problem has it."""

    name: str
    kind: str
    needs: str
    holds: Callable[[Seen], Any]


CORNERS: list[Corner] = []


@overload
def corner(function: Callable[[Seen], Any]) -> Callable[[Seen], Any]: ...
@overload
def corner(*, needs: str) -> Callable[[Callable[[Seen], Any]], Callable[[Seen], Any]]: ...
def corner(function: Callable[[Seen], Any] | None = None, *, needs: str = "") -> Any:
    """Mark a function of a `Seen` problem as a corner."""

    def marked(function: Callable[[Seen], Any]) -> Callable[[Seen], Any]:
        kind = function.__module__.rpartition(".")[2]
        CORNERS.append(Corner(function.__name__.replace("_", " "), kind, needs, function))
        return function

    return marked if function is None else marked(function)


@cache
def every() -> tuple[Corner, ...]:
    """The corners of all files of this folder, file by file."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return tuple(sorted(CORNERS, key=lambda each: each.kind))


class Seen:
    """A problem with what several corners ask of it, each computed once."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.sizes, self.options = problem, problem.sizes, problem.options

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the problem by name, in the memory that a call gets."""
        given = {name: x for name, x in vars(self.problem).items() if isinstance(x, np.ndarray)}
        fields = {name: x for name, x in given.items() if name in self.problem.__dataclass_fields__}
        return {name: LAYOUTS[self.problem.layouts.get(name, "contiguous")](x) for name, x in fields.items()}

    @cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """Query, key and value in float64."""
        return {
            name: np.asarray(getattr(self.problem, name), np.float64) for name in ("query", "key", "value")
        }

    @cached_property
    def bias(self) -> np.ndarray | None:
        """The bias in float64."""
        return None if self.problem.bias is None else np.asarray(self.problem.bias, np.float64)

    @cached_property
    def scores(self) -> np.ndarray:
        """The scores (B,H,Q,K) in float64; -inf where a query does not see a key."""
        options = {name: x for name, x in self.options.items() if name not in ("sinks", "return_lse")}
        if self.bias is not None:
            options["bias"] = self.bias
        return np.asarray(scores(self.numbers["query"], self.numbers["key"], **options,
                                 causal_alignment=self.problem.causal_alignment))  # fmt: skip

    @cached_property
    def log_sum_exp(self) -> np.ndarray:
        """(B,H,Q), of the rows that see a key."""
        lse: np.ndarray = np.asarray(log_sum_exp(self.scores))
        return np.asarray(lse[np.isfinite(lse)])

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows of scores (N,K) that see at least two keys."""
        rows = self.scores.reshape(-1, self.scores.shape[-1])
        return np.asarray(rows[(rows > -np.inf).sum(-1) > 1])
