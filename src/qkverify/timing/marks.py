"""What is known against an implementation when it is timed: recorded findings, and laws that it breaks.

Whoever can run a workload is timed on it, if the output there is within its bound. What is known against it stands
beside the time, and bars the time only where the workload falls under it:

a finding      where `Finding.when` says that it can show on the workload (or does not say when it shows);
a broken law   where the workload has every trait of the smallest counterexample (see `traits`). How calls behave
               (what they write, refuse or remember) says nothing of the numbers, which the output check judges.

Of both: a law about gradients says nothing of forward alone, and a law that needs an option nothing of a workload
that does not use it. This is the only place where that is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from qkverify.contract import Finding
from qkverify.problem import traits
from qkverify.results import OUTCOMES_AGAINST, Mark, Verdict
from qkverify.timing.benchmark_cases import BACKWARD, BenchmarkCase, used_by
from qkverify.timing.workloads import Workload
from qkverify.verification import outcomes
from qkverify.verification.checking import CALLS, law_book
from qkverify.verification.laws import Law

GRADIENT_WORDS = ("gradient", "vjp", "jacobian", "backward")
NOT_VERIFIED = "not verified in this run"


class Known:
    """What verdicts of the laws and an implementation's own findings say, cell by cell.

    Without verdicts (None) the laws were not checked, and findings alone speak.
    """

    def __init__(self, verdicts: Iterable[Verdict] | None = None) -> None:
        self._verdicts: dict[tuple[str, str, str], list[Verdict]] | None = None if verdicts is None else {}
        for verdict in verdicts or ():
            key = verdict.implementation, verdict.device, verdict.dtype
            self._verdicts.setdefault(key, []).append(verdict)  # type: ignore[union-attr]

    def refused(self, cell: BenchmarkCase) -> str | None:
        """Why a cell that refused the problems of every law offers nothing; None for any other."""
        verdicts = self._of(cell)
        if not verdicts or any(v.outcome != "not offered" for v in verdicts):
            return None
        return f"not offered: {verdicts[0].reason}"

    def marks(self, cell: BenchmarkCase) -> list[Mark]:
        """All that is known: findings by their folder, then the broken laws that bar the cell, then the others."""
        broken = [
            v for v in self._of(cell) if v.outcome in OUTCOMES_AGAINST and _concerns(cell, v.family, v.law)
        ]
        barring = [v for v in broken if _falls_under(cell, v)]
        marks = [*_findings(cell), *_broken(barring, bars=True)]
        marks += _broken([v for v in broken if v not in barring], bars=False)
        if self._verdicts is not None and (why := self._why_not_verified(cell)):
            marks.append(Mark("not verified", [], why))
        return marks

    def _why_not_verified(self, cell: BenchmarkCase) -> str:
        """Why the laws say nothing of a cell; empty where they say something."""
        if not self._of(cell):
            return NOT_VERIFIED
        outcome = outcomes.of_cell(self._of(cell))
        return f"not verified: {outcome.reason}" if outcome.word == outcomes.NOT_VERIFIED else ""

    def _of(self, cell: BenchmarkCase) -> list[Verdict]:
        key = cell.implementation.name, cell.device, cell.dtype
        return (self._verdicts or {}).get(key, [])


def against(marks: Iterable[Mark], *, lawful_only: bool = False) -> str | None:
    """Why a cell with these marks is not timed, or None. With `lawful_only` every mark is a reason."""
    barring = [mark for mark in marks if mark.bars or lawful_only]
    return words(barring[0]) if barring else None


def words(mark: Mark, place: Callable[[str], str] = str) -> str:
    """A mark in one line. `place` says where a folder of a finding is to be had."""
    if mark.kind == "finding":
        return f"known failure: {mark.sentence}, see {place(mark.folder)}"
    if mark.kind == "broken":
        return f"breaks {_count(mark.laws, 'law')}: {mark.sentence}"
    return mark.sentence


def brief(marks: Sequence[Mark]) -> str:
    """All marks of a time in a few words: "2 known failures, broken: 3 laws"."""
    findings = [mark.folder for mark in marks if mark.kind == "finding"]
    broken = [law for mark in marks if mark.kind == "broken" for law in mark.laws]
    said = [_count(findings, "known failure")] if findings else []
    said += [f"broken: {_count(broken, 'law')}"] if broken else []
    return ", ".join([*said, *(mark.sentence for mark in marks if mark.kind == "not verified")])


def _count(things: Sequence[str], word: str) -> str:
    return f"{len(things)} {word}{'s' if len(things) != 1 else ''}"


def about_gradients(family: str, law: str) -> bool:
    """Whether a law speaks of gradients, by its family and name."""
    return family == "gradients" or any(word in law for word in GRADIENT_WORDS)


def _concerns(cell: BenchmarkCase, family: str, law: str) -> bool:
    """Whether a law speaks of the cell's direction at all."""
    return cell.direction in BACKWARD or not about_gradients(family, law)


def _uses_what_it_needs(cell: BenchmarkCase, law: str) -> bool:
    known = _laws().get(law)
    return known is None or set(known.needs) <= used_by(cell)


def _falls_under(cell: BenchmarkCase, verdict: Verdict) -> bool:
    """Whether the workload can meet what broke this law; `_concerns` comes before."""
    if verdict.family in CALLS or not _uses_what_it_needs(cell, verdict.law):
        return False
    example = verdict.counterexample
    shown = example.traits if example is not None else None
    return shown is None or set(shown) <= _traits_of(cell.workload)


def _findings(cell: BenchmarkCase) -> list[Mark]:
    laws: dict[str, list[str]] = {}
    bars: dict[str, bool] = {}
    first: dict[str, Finding] = {}
    for law, known in cell.implementation.findings_at(cell.device, cell.dtype).items():
        family = _laws()[law].family if law in _laws() else ""
        if not _concerns(cell, family, law):
            continue
        first.setdefault(known.folder, known)
        laws.setdefault(known.folder, []).append(law)
        bars[known.folder] = bars.get(known.folder, False) or (
            _uses_what_it_needs(cell, law) and _can_show(known, cell)
        )
    return [
        Mark("finding", laws[folder], known.sentence or _sentence_of(laws[folder]), folder, bars[folder])
        for folder, known in first.items()
    ]


def _can_show(known: Finding, cell: BenchmarkCase) -> bool:
    return known.when is None or known.when(_problem(cell.workload, cell.dtype))


def _broken(verdicts: list[Verdict], *, bars: bool) -> list[Mark]:
    names = list(dict.fromkeys(v.law for v in verdicts))
    said = [
        f"{v.law} ({v.sentence})" if v.outcome == "failed" else f"{v.law} ({v.outcome})" for v in verdicts[:1]
    ]
    sentence = ", ".join([*said, *names[1:]])
    return [Mark("broken", names, sentence, bars=bars)] if names else []


def _sentence_of(laws: list[str]) -> str:
    """The first law's own sentence, which the finding breaks; its name, where no such law is known any more."""
    known = _laws().get(laws[0])
    return f"it breaks {laws[0]}" + (f" ({known.sentence})" if known else "")


@lru_cache(maxsize=64)
def _traits_of(workload: Workload) -> frozenset[str]:
    return frozenset(traits.of_shape(workload.outline("float32")))


@lru_cache(maxsize=2)
def _problem(workload: Workload, dtype: str) -> object:
    return workload.problem(dtype)


@lru_cache(maxsize=1)
def _laws() -> Mapping[str, Law]:
    return {law.name: law for law in law_book()}
