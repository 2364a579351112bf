"""What of a replay shows the failure: one call against exact values, two calls against each other, or a deed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qkverify.counterexamples.scripts import dropout
from qkverify.counterexamples.scripts.decoding import left_wrong
from qkverify.counterexamples.scripts.recorder import Array, Recorded, Recorder, same
from qkverify.errors import ContractError, LawViolation
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import Bounded
from qkverify.runs.assertions import Evidence

if TYPE_CHECKING:
    from qkverify.verification.laws import Law


PLACES = 12  # that hold the same number, of which each costs a trial


@dataclass(frozen=True, kw_only=True)
class ScriptCase:
    """What a script is to show. `got` and `exact` are None where the failure is none of numbers."""

    kind: str  # "value", "agree", "written", "raises", "refuses", "contract"; "left", "dropped", "masks", "share", "repeats"
    call: Recorded
    what: str = ""
    location: tuple[int, ...] = ()
    got: float | None = None
    exact: float | None = None
    bound: float = 0.0
    other: Recorded | None = None  # the call that must agree with `call`
    seed: int = 0  # of the generator, where the call depends on chance


def cases(law: Law, run: Recorder, broken: Exception) -> Iterator[ScriptCase]:
    """What could show the failure, the most telling first."""
    evidence = broken.evidence if isinstance(broken, LawViolation) else None
    reported = evidence if isinstance(evidence, Evidence) else None
    if not run.log:
        return
    last = run.log[-1]
    if last.error is broken:
        yield ScriptCase(kind="contract" if isinstance(broken, ContractError) else "raises", call=last)
        return
    if last.kind == "unchecked" and last.error is None:
        yield ScriptCase(kind="refuses", call=last)
        return
    written = [ScriptCase(kind="written", call=c, what=c.written[0]) for c in run.log if c.written]
    if reported is None:
        yield from written
    if not _repeats_differ(run.log):
        yield from _against_exact(law, run, reported)
        if reported is not None and law.exact:
            yield from _against_each_other(run.log, reported)
        if reported is not None:
            yield from _where_it_stands(run.log, reported)
        else:
            yield from _against_reference(run)
    yield from (ScriptCase(kind="left", call=c, what=name) for c in run.log for name in left_wrong(c))
    yield from by_chance(run, broken)
    yield from written  # what is exact for the arguments that a call has left behind may not be for those it was given


def _repeats_differ(log: list[Recorded]) -> bool:
    """Whether two calls with the same arguments gave different numbers: then no single call shows anything for sure."""
    return any(not all(map(same, a.got.values(), b.got.values())) for a, b in _repeated(log))


def _repeated(log: list[Recorded]) -> Iterator[tuple[Recorded, Recorded]]:
    """Two calls with the same arguments."""
    calls = [c for c in log if c.problem is not None and c.got]
    pairs = itertools.combinations(calls, 2)
    return ((a, b) for a, b in pairs if a.kind == b.kind and _equal_problems(a.problem, b.problem))


def by_chance(run: Recorder, broken: Exception | None = None) -> Iterator[ScriptCase]:
    """Calls with dropout, from a seed; and one that gives different numbers without, or may: a replay need not fail."""
    again = next((a for a, _ in _repeated(run.log) if a.kind == "attention"), None)
    if again is not None and (broken is None or _repeats_differ(run.log)):
        yield from (ScriptCase(kind="repeats", call=again, seed=seed) for seed in range(dropout.TRIED))
    dropped = [c for c in run.log if c.kind.startswith("dropout")]
    for call, seed in itertools.product(dropped, range(dropout.TRIED)):
        for what, got, exact in dropout.exact_of(run, call, seed):
            worst = _worst(got, exact, None, False)
            if worst is not None:
                location, bound, _ = worst
                yield ScriptCase(kind="dropped", call=call, what=what, location=location, got=float(got[location]),
                           exact=float(exact.value[location]), bound=bound, seed=seed)  # fmt: skip
    for call in [c for c in dropped if dropout.is_counted(c)]:
        yield ScriptCase(kind="share", call=call)
        if not call.problem.query.any():  # type: ignore[union-attr]  # the law of masks has equal weights
            yield ScriptCase(kind="masks", call=call)


def _equal_problems(a: Problem | None, b: Problem | None) -> bool:
    if a is None or b is None:
        return False
    return all(
        (x is None) == (y is None) and (same(x, y) if isinstance(x, np.ndarray) else x == y)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Problem))
    )


def _against_exact(law: Law, run: Recorder, reported: Evidence | None) -> Iterator[ScriptCase]:
    """Single calls outside of their bound: first that whose numbers the failure names, then the rest as they came."""
    outside: list[tuple[bool, ScriptCase]] = []
    for call in run.log:
        for what, exact in run.judged(call).items():
            worst = _worst(call.got[what], exact, reported, law.exact) if what in call.got else None
            if worst is not None:
                location, bound, named = worst
                got, value = float(call.got[what][location]), float(exact.value[location])
                outside.append((named, ScriptCase(kind="value", call=call, what=what, location=location, got=got,
                                          exact=value, bound=bound)))  # fmt: skip
    yield from (case for _, case in sorted(outside, key=lambda pair: not pair[0]))


def _worst(
    got: Array, exact: Bounded, reported: Evidence | None, to_the_bit: bool
) -> tuple[tuple[int, ...], float, bool] | None:
    """(location, bound, whether the failure names this element) of the element that is off, or None."""
    a, b = got.astype(np.float64), np.broadcast_to(exact.value, got.shape)
    bound = np.nan_to_num(np.broadcast_to(exact.errors, got.shape), nan=np.inf, posinf=np.inf)
    # NaN is exact where a row sees nothing and that is declared, or where poison lies: only the failure can say which.
    unknown = np.isnan(b) & (reported is None or not np.isnan(reported.exact))
    with np.errstate(all="ignore"):
        distance = np.abs(a - b)
        holds = (distance <= bound) | equal(a, b) | np.isposinf(bound) | unknown
        margin = np.where(holds, -1.0, np.nan_to_num(distance / bound, nan=np.inf))
    if reported is not None:
        named = equal(a, reported.got) & equal(b, reported.exact) & ~equal(a, b)
        here = _inside(reported.location, named) and bool(named[reported.location])
        if (named & ~holds).any():
            at = reported.location if here and not holds[reported.location] else _first(named & ~holds)
            return at, float(bound[at]), True
        if here or (to_the_bit and named.any()):  # the law knows better than the bound
            return reported.location if here else _first(named), reported.bound, True
    if holds.all():
        odd = ~np.isfinite(a) & np.isfinite(
            b
        )  # outside of the range that the bound covers, but no number at all
        return (_first(odd), np.inf, False) if reported is None and odd.any() else None
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(margin)), a.shape))
    return at, float(bound[at]), False


def _against_each_other(log: list[Recorded], reported: Evidence) -> Iterator[ScriptCase]:
    """Two calls that differ where the failure says so: both of its numbers at one place."""
    for a, b in itertools.permutations([c for c in log if c.problem is not None], 2):
        for what in a.got.keys() & b.got.keys():
            x, y = a.got[what].astype(np.float64), b.got[what].astype(np.float64)
            if x.shape != y.shape:
                continue
            named = equal(x, reported.got) & equal(y, reported.exact) & ~equal(x, y)
            if named.any():
                yield ScriptCase(kind="agree", call=a, other=b, what=what, location=_first(named), got=reported.got,
                           exact=reported.exact)  # fmt: skip


def _where_it_stands(log: list[Recorded], reported: Evidence) -> Iterator[ScriptCase]:
    """Results of which the law has judged a part, such as one sequence: the places that hold the number it names.

    The trial of the script says which it is: only there the exact value is that of the failure.
    """
    for call in [c for c in log if c.problem is None and not c.exact]:
        for what, got in call.got.items():
            for place in np.argwhere(equal(got.astype(np.float64), reported.got))[:PLACES]:
                yield ScriptCase(kind="value", call=call, what=what, location=tuple(int(i) for i in place), got=reported.got,
                           exact=reported.exact, bound=reported.bound)  # fmt: skip


def _against_reference(run: Recorder) -> Iterator[ScriptCase]:
    """Results that the law has compared with nothing exact, held against the operation's reference."""
    for call in [c for c in run.log if c.problem is None and not c.exact and "result" in c.got]:
        exact = run.reference(call)
        worst = None if exact is None else _worst(call.got["result"], exact, None, False)
        if exact is not None and worst is not None:
            location, bound, _ = worst
            yield ScriptCase(kind="value", call=call, what="result", location=location, got=float(call.got["result"][location]),
                       exact=float(exact.value[location]), bound=bound)  # fmt: skip


def equal(a: Any, b: Any) -> Any:
    """Elementwise; NaN equals NaN."""
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _inside(location: tuple[int, ...], array: Array) -> bool:
    return len(location) == array.ndim and all(i < n for i, n in zip(location, array.shape, strict=True))
