"""Which examples put a returned result to the test: those in which a law held it against the reference's numbers.

A law about two results of one function, or about what a call must leave alone, passes where nothing is computed. So a run counts
the examples in which a law compared what came back, or a part of it, with what the reference gives, and "all laws hold" is said
only where there are enough of them (see `outcomes`). Not counted are comparisons that say nothing:

- elements that a result of zeros would pass as well, because the exact number is zero or its bound is no smaller than itself;
- attention of queries that see a single key each: the output is that key's value, whatever the scores are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import EXACT, Bounded, Precision

RESULT, GRADIENTS = "result", "gradients"  # what an implementation returned


class Returned(Bounded):
    """What an implementation returned, with its bound and the reference's number for each element.

    Parts and rearrangements keep the reference's numbers. Arithmetic does not: what is computed from results is no result.
    """

    __slots__ = ("kind", "reference")

    def __init__(self, value: Any, error: Any = 0.0, precision: Precision = EXACT, unit: float | None = None, *,
                 reference: np.ndarray | None = None, kind: str = RESULT) -> None:  # fmt: skip
        super().__init__(value, error, precision, unit)
        self.reference, self.kind = reference, kind

    def __getitem__(self, index: Any) -> Bounded:
        return self._part(super().__getitem__(index), lambda x: x[index])

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        part = super().__array_function__(function, types, args, kwargs)
        if function is not np.where or args[1] is not self or isinstance(args[2], Bounded):
            return part
        condition, _, other = args  # where the condition does not hold, nothing was returned
        return self._part(part, lambda x: np.where(condition, x, other))

    def _moved(self, move: Callable[[np.ndarray], Any]) -> Bounded:
        return self._part(super()._moved(move), move)

    def _part(self, part: Bounded, take: Callable[[np.ndarray], Any]) -> Bounded:
        if self.reference is None:
            return part
        exact = take(self.reference)
        return Returned(part.value, part.error, part.precision, part.unit, reference=exact, kind=self.kind)


class Comparisons:
    """The count of one run. `examples` says for "result" and "gradients" in how many examples they were compared."""

    def __init__(self) -> None:
        self.examples: Counter[str] = Counter()
        self._now: set[str] = set()  # what the current example has compared
        self._gradients: list[np.ndarray] = []  # those that came back in the current example

    def begin_example(self) -> None:
        self._now, self._gradients = set(), []

    def end_example(self) -> None:
        """The example held: what it compared counts."""
        self.examples.update(self._now)

    def came_back(self, array: np.ndarray, what: str) -> None:
        """Remember which arrays are gradients; a law may hold a part of one against the reference."""
        if what.startswith("gradient of"):
            self._gradients.append(array)

    def kind_of(self, array: np.ndarray) -> str:
        root = _root(array)
        return GRADIENTS if any(root is _root(gradient) for gradient in self._gradients) else RESULT

    def note(self, got: Any, expected: Any, problems: Sequence[Problem]) -> None:
        """`got` is held against the numbers `expected`, in an example on these problems of attention (or on none)."""
        if isinstance(got, Returned) and got.kind not in self._now and not isinstance(expected, Returned):
            value = expected.value if isinstance(expected, Bounded) else np.asarray(expected, np.float64)
            if _tells(got, value) and (not problems or _has_a_choice(problems)):
                self._now.add(got.kind)


def _tells(got: Returned, expected: np.ndarray) -> bool:
    """Whether the numbers are the reference's, within the bound, and zeros would not be."""
    exact, errors = got.reference, got.errors
    if exact is None or not exact.size:
        return False
    with np.errstate(invalid="ignore"):
        agrees = ~np.isfinite(errors) | (np.abs(expected - exact) <= errors) | (expected == exact)
        agrees |= np.isnan(expected) & np.isnan(exact)
        return bool(agrees.all() and (np.abs(exact) > errors).any())


def _has_a_choice(problems: Iterable[Problem]) -> bool:
    """Whether some query shares its weight out: over two keys or more, or over a key and a sink."""
    return any(
        problem.visible.sum(-1).max(initial=0) > (1 if problem.sinks is None else 0) for problem in problems
    )


def _root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
