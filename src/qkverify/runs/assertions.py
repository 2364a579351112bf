"""Comparing, and the message that a person reads.

An element holds when |got - expected| is within the sum of the errors of both sides; a side that is a plain array counts as
exact. Where the bound is infinite (outside the range that the precision covers) nothing is judged. NaN equals NaN only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from qkverify.errors import LawViolation
from qkverify.rounding import Bounded
from qkverify.runs.run import Run, active


@dataclass(frozen=True)
class Evidence:
    """The worst element of a broken law, ready to print and to record."""

    what: str
    location: tuple[int, ...]
    got: float
    exact: float
    bound: float
    margin: float

    def __str__(self) -> str:
        where = f"{self.what}{list(self.location) if self.location else ''}"
        got, exact = number(self.got), number(self.exact)
        if got == exact:  # they differ in digits that a reader is otherwise spared
            got, exact = repr(self.got), repr(self.exact)
        return f"{where}\n  got {got}   exact {exact}   {self._allowed()}"

    def _allowed(self) -> str:
        """What was allowed there, without numbers that say nothing."""
        if np.isnan(self.exact):
            return "NaN is right here"
        if np.isnan(self.got):
            return f"bound {self.bound:.2g}"
        if self.bound == 0:
            return "must be equal"
        return f"bound {self.bound:.2g}   margin {_past_one(self.margin)}"


def _past_one(margin: float) -> str:
    """Two digits, or as many as it takes to see that it is past 1."""
    return next(
        (text for digits in (2, 3, 5, 9) if float(text := f"{margin:.{digits}g}") > 1), f"{margin:.17g}"
    )


def assert_gradients(run: Run, received: Mapping[str, np.ndarray], exact: Mapping[str, Bounded]) -> None:
    """Every gradient that came back is the reference's within its bound. Raises LawViolation at the worst element."""
    for name, got in received.items():
        assert_within_bound(run.within(got, exact[name]), exact[name].value, what=f"gradient of {name}")


def assert_within_bound(got: Any, expected: Any, *, what: str = "output") -> None:
    """Every element of `got` equals `expected` within the derived bound. Raises LawViolation at the worst element."""
    a, da = _parts(got)
    b, db = _parts(expected)
    if np.shape(a) != np.shape(b) or not np.ndim(a):
        a, b = np.broadcast_arrays(a, b)
    if a.size == 0:
        return
    bound = da + db
    if np.shape(bound) != a.shape:
        bound = np.broadcast_to(bound, a.shape)
    run = active()
    if run is not None:
        run.compared.note(got, expected, run.problems)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        distance = np.abs(a - b)
        if (
            distance <= bound
        ).all():  # the usual case; NaN, infinities and what breaks the law take the long way
            if run is not None:
                margins = np.divide(distance, bound, out=np.zeros(a.shape), where=distance > 0)
                run.largest_margin = max(run.largest_margin, float(margins.max()))
            return
        unjudged = np.isposinf(da) | np.isposinf(
            db
        )  # of either side, whatever the other is: infinity plus NaN is NaN
        holds = (distance <= bound) | (a == b) | (np.isnan(a) & np.isnan(b)) | unjudged
        margin = np.where(
            a == b, 0.0, np.where(unjudged | (holds & np.isnan(distance)), 0.0, distance / bound)
        )
    margin = np.where(np.isnan(margin), np.inf, margin)
    if holds.all():
        if run is not None:
            run.largest_margin = max(run.largest_margin, float(margin.max()))
        return
    worst = np.unravel_index(int(np.argmax(np.where(holds, -1.0, margin))), a.shape)
    raise_violation(Evidence(what, tuple(int(i) for i in worst), float(a[worst]), float(b[worst]), float(bound[worst]),
                             float(margin[worst])))  # fmt: skip


def assert_at_most(got: Any, limit: Any, *, what: str = "output") -> None:
    """No element of `got` exceeds `limit` by more than the derived bound."""
    a, da = _parts(got)
    b, db = _parts(limit)
    over = np.maximum(a, b) if not np.isnan(a).any() else a
    assert_within_bound(
        Bounded(over, np.broadcast_to(da, np.shape(a))),
        Bounded(np.broadcast_to(b, over.shape), db),
        what=what,
    )


def assert_at_least(got: Any, limit: Any, *, what: str = "output") -> None:
    """No element of `got` falls below `limit` by more than the derived bound."""
    assert_at_most(-got if isinstance(got, Bounded) else -np.asarray(got, np.float64),
                   -limit if isinstance(limit, Bounded) else -np.asarray(limit, np.float64), what=f"-{what}")  # fmt: skip


def assert_identical(got: Any, expected: Any, *, what: str = "output") -> None:
    """Every number of `got` is that of `expected`, exactly; NaN equals NaN."""
    a, b = np.asarray(got), np.asarray(expected)
    if a.shape != b.shape:
        raise LawViolation(f"{what}: shape {a.shape}, expected {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not same.all():
        worst = np.unravel_index(int(np.argmax(~same)), a.shape)
        raise_violation(
            Evidence(what, tuple(int(i) for i in worst), float(a[worst]), float(b[worst]), 0.0, float("inf"))
        )


def assert_same_result(
    run: Run, got: np.ndarray, earlier: np.ndarray, bound: Callable[[], Bounded], *, what: str = "output"
) -> None:
    """Two calls gave the same, bit for bit; within the bound of both if sums are made in any order (`deterministic`: no)."""
    if run.adds_in_order:
        assert_identical(got, earlier, what=what)
    else:
        exact = bound()
        assert_within_bound(run.within(got, exact), run.within(earlier, exact), what=what)


def assert_true(holds: Any, sentence: str) -> None:
    """A law that is no comparison of numbers: `sentence` says what should have held."""
    if not np.all(holds):
        raise LawViolation(sentence)


def raise_violation(evidence: Evidence) -> NoReturn:
    raise LawViolation(str(evidence), evidence=evidence)


def number(x: float) -> str:
    """A number as a person reads it, with all the digits that tell it from its neighbours in float32."""
    return f"{x:.9g}" if np.isfinite(x) else str(x)


def _parts(x: Any) -> tuple[np.ndarray, Any]:
    if isinstance(x, Bounded):
        return x.value, x.errors
    return np.asarray(x, dtype=np.float64), 0.0
