"""Which is faster: two implementations of one run, or one implementation in two runs.

Within a run times are paired round by round (`statistics`). Two runs took place at different moments, so
nothing can be paired: the processes' medians of one are held against those of the other, with Welch's
interval. What the machine itself did between the runs is in that difference, and neither interval nor control
can know of it. With `relative_to` another implementation that was timed in both runs takes it out: compared
are then paired ratios to that one.

What noise can do is said by the A/A controls of the very cases that are compared, of both runs.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from qkverify.errors import UsageError
from qkverify.results import Control, Fact, Record, RunStart, Timing, of_kind, read
from qkverify.results.fingerprint import MACHINE, alike
from qkverify.timing import statistics
from qkverify.timing.statistics import Comparison

FAIL_ON = {"slower": ("slower",), "faster": ("faster",), "different": ("slower", "faster")}


class ComparedCase(NamedTuple):
    """One case in one direction: what the candidate's time is to the baseline's."""

    candidate: Timing
    baseline: Timing
    comparison: Comparison
    logs: list[float]  # by process, for the mean over cases


class Result(NamedTuple):
    """All cases that both sides have, and the geometric mean over them."""

    cases: list[ComparedCase]
    overall: Comparison


class Side(NamedTuple):
    """One run: its header, timings and controls."""

    start: RunStart | None
    timings: list[Timing]
    controls: list[Control]
    untimed: Sequence[Timing] = ()  # cells without times, each with its reason


def side_of(records: Iterable[Record]) -> Side:
    """What comparisons need of a results file; of a cell that was timed more than once the last."""
    records = list(records)
    starts = of_kind(records, RunStart)
    latest = {_key(t): t for t in of_kind(records, Timing)}
    controls = {c.group: c for c in of_kind(records, Control)}
    return Side(
        starts[-1] if starts else None,
        [t for t in latest.values() if t.seconds],
        list(controls.values()),
        [t for t in latest.values() if not t.seconds],
    )


def is_run(where: str) -> bool:
    """Whether this means a results file and no implementation."""
    return where.endswith(".jsonl")


def fails(compared: Result, fail_on: str) -> bool:
    """Whether a case, or all of them together, is what must not be."""
    words = FAIL_ON.get(fail_on, ())
    return any(
        comparison.word in words
        for comparison in (compared.overall, *(case.comparison for case in compared.cases))
    )


def load(where: str) -> Side:
    """A results file by its path, or by REVISION:PATH as git has it. Raises UsageError or ResultsError."""
    if Path(where).is_file():
        return side_of(read(where))
    revision, colon, path = where.partition(":")
    if colon:
        done = subprocess.run(["git", "show", f"{revision}:./{path}"], capture_output=True, check=False)
        if done.returncode == 0:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / Path(path).name
                copy.write_bytes(done.stdout)
                return side_of(read(copy))
        raise UsageError(f"git has no {where}: {done.stderr.decode(errors='replace').strip()}")
    raise UsageError(f"{where} is not a results file; `qkverify bench --results {where}` writes one")


def implementations(run: Side, candidate: str, baseline: str) -> Result:
    """Two implementations of one run. Raises UsageError where they have no case in common."""
    named = [name for name in (candidate, baseline) if all(t.implementation != name for t in run.timings)]
    reasons = dict.fromkeys(t.reason for t in run.untimed if t.implementation in named[:1])
    if reasons:
        raise UsageError("\n  ".join([f"{named[0]} has no time to compare", *reasons]))
    if named:
        raise UsageError.unknown(
            "implementation", named[0], dict.fromkeys(t.implementation for t in run.timings)
        )
    by_group = {t.group: t for t in run.timings if t.implementation == baseline}
    pairs = [
        (t, by_group[t.group]) for t in run.timings if t.implementation == candidate and t.group in by_group
    ]
    cases = [
        ComparedCase(
            mine, other, statistics.compare(mine, other, run.controls), statistics.process_ratios(mine, other)
        )
        for mine, other in pairs
    ]
    return _result(cases, run.controls, f"{candidate} and {baseline} have no case in common")


def runs(new: Side, old: Side, *, relative_to: str = "", across_devices: bool = False) -> Result:
    """Every cell that both runs timed, the new time over the old.

    Raises UsageError where the runs are of different machines (unless `across_devices`) or share no cell.
    """
    different = [] if across_devices else _differences(new, old, MACHINE)
    if different:
        raise UsageError("these runs are from different machines, so their times cannot be compared:\n  "
                         + "\n  ".join(different) + "\n  --across-devices compares them anyway")  # fmt: skip
    before = {_key(t): t for t in old.timings}
    cases = [
        _between(mine, before[_key(mine)], new, old, relative_to)
        for mine in new.timings
        if _key(mine) in before and mine.implementation != relative_to
    ]
    comparable = [case for case in cases if case is not None]
    return _result(comparable, [*new.controls, *old.controls], "the two runs timed no case in common")


def software_changes(new: Side, old: Side) -> list[str]:
    """What else differs between the runs, as "torch: 2.12.0, now 2.13.0": that is what they are compared for."""
    names = (
        [*new.start.fingerprint.identity, *old.start.fingerprint.identity] if new.start and old.start else []
    )
    return _differences(new, old, [name for name in dict.fromkeys(names) if name not in MACHINE])


def _between(mine: Timing, other: Timing, new: Side, old: Side, relative_to: str) -> ComparedCase | None:
    """One cell in two runs; None where `relative_to` was not timed beside it in both."""
    if relative_to:
        beside = [_beside(timing, side, relative_to) for timing, side in ((mine, new), (other, old))]
        if beside[0] is None or beside[1] is None:
            return None
        logs = [statistics.process_ratios(mine, beside[0]), statistics.process_ratios(other, beside[1])]
    else:
        logs = [statistics.process_medians(timing) for timing in (mine, other)]
    interval = statistics.unpaired_ratio(*logs)
    band = max(statistics.band(mine, new.controls), statistics.band(other, old.controls))
    word = statistics.verdict(interval, band)
    count = min(len(mine.seconds), len(other.seconds))
    return ComparedCase(mine, other, Comparison(word, interval, count), _differences_of(*logs))


def _differences_of(new: Sequence[float], old: Sequence[float]) -> list[float]:
    """By process, in the order in which they ran: for the mean over cases, in which each process counts once."""
    return [a - b for a, b in zip(new, old, strict=False)]


def _beside(timing: Timing, side: Side, name: str) -> Timing | None:
    return next((t for t in side.timings if t.implementation == name and t.group == timing.group), None)


def _result(cases: list[ComparedCase], controls: Sequence[Control], otherwise: str) -> Result:
    if not cases:
        raise UsageError(otherwise)
    if len(cases) == 1:
        return Result(cases, cases[0].comparison)
    interval = statistics.mean_ratio(case.logs for case in cases)
    mine = [c for case in cases for c in statistics.own_controls(case.candidate, controls)]
    band = statistics.noise([statistics.pooled(mine)] if mine else [])
    return Result(cases, Comparison(statistics.verdict(interval, band), interval, len(cases)))


def _differences(new: Side, old: Side, names: Iterable[str]) -> list[str]:
    if new.start is None or old.start is None:
        return []
    now, before = new.start.fingerprint.identity, old.start.fingerprint.identity
    return [
        f"{n}: {_said(before.get(n))}, now {_said(now.get(n))}"
        for n in names
        if not alike(n, before.get(n), now.get(n))
    ]


def _said(fact: Fact) -> str:
    return "unknown" if fact is None else str(fact)


def _key(timing: Timing) -> tuple[str, ...]:
    return (*timing.group, timing.implementation)
