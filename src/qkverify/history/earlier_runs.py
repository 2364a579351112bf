"""Earlier runs of a device: kept small beside its results, so that a trend can be seen.

`reports/<device>/results.jsonl` is the latest run with all its samples. Before a new run takes its place, `archive` writes what a
trend needs of it to `reports/<device>/history/<start of the run>.jsonl`: the header, ceilings without samples, A/A controls, a
`TimingSummary` for every timed cell, a `Tally` of the verdicts. That is some 350 bytes a cell: the samples themselves are ten
times as much, and stay in the version control of whoever commits results.

These are results files like any other (same format, same reader). A run in which nothing was timed is not kept. A results file
may hold several runs, where one was gone on with: each that timed something counts as a run.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkverify.results import (
    Ceiling,
    Control,
    Fact,
    Record,
    RunStart,
    Tally,
    Timing,
    TimingSummary,
    Verdict,
    Writer,
    of_kind,
    read,
)
from qkverify.results.fingerprint import MACHINE, alike
from qkverify.timing.statistics import (
    CONFIDENCE,
    FEWEST_ROUNDS,
    RESAMPLES,
    drop_disturbed_rounds,
    process_medians,
    student,
)

FOLDER = "history"


class TimedCase(NamedTuple):
    """What is compared over runs. `flops` is in it because a case that was redefined is another case."""

    implementation: str
    device: str
    dtype: str
    direction: str
    case: str
    flops: int


@dataclass(frozen=True)
class PastRun:
    """What a trend needs of one run, whether it is an earlier one or that of today."""

    start: RunStart
    cells: dict[TimedCase, TimingSummary]
    ceilings: list[Ceiling]
    controls: list[Control]
    tally: Tally | None

    @property
    def identity(self) -> dict[str, Fact]:
        return self.start.fingerprint.identity


def archive(results: Path) -> list[Path]:
    """Keep the runs of a results file that is about to be replaced; the files that were written, none where nothing was timed.

    A run that is kept already is left as it is. Raises ResultsError where the file is in a format that cannot be read: it must
    not be replaced then. Torn lines are passed over.
    """
    if not results.is_file():
        return []
    written = []
    for run in runs_of(read(results, strict=False).records):
        path = results.parent / FOLDER / f"{file_name(run.start.started)}.jsonl"
        if not path.exists():
            _write(run, path)
            written.append(path)
    return written


def load(results: Path) -> list[PastRun]:
    """The runs kept beside a results file, oldest first. Raises ResultsError naming file and line."""
    files = sorted((results.parent / FOLDER).glob("*.jsonl"))
    return in_order(run for file in files for run in runs_of(read(file)))


def in_order(runs: Iterable[PastRun]) -> list[PastRun]:
    """Oldest first, each start once: a run that was killed between being archived and being replaced stands in both places."""
    return sorted({run.start.started: run for run in runs}.values(), key=lambda run: _time(run.start.started))


def runs_of(records: Sequence[Record]) -> list[PastRun]:
    """The runs of a file in which something was timed; what precedes the first header belongs to none."""
    parts: list[list[Record]] = []
    for record in records:
        if isinstance(record, RunStart):
            parts.append([])
        if parts:
            parts[-1].append(record)
    runs = [_run(part) for part in parts]
    return [run for run in runs if run.cells]


def summary_of(timing: Timing) -> TimingSummary:
    """A timing that has samples, without them. Under three samples the interval is from the least to the greatest."""
    low, high = median_interval(timing)
    return TimingSummary(
        case=timing.case,
        implementation=timing.implementation,
        device=timing.device,
        dtype=timing.dtype,
        direction=timing.direction,
        median_seconds=float(np.median(drop_disturbed_rounds(timing))),
        low_seconds=low,
        high_seconds=high,
        samples=len(timing.seconds),
        flops=timing.flops,
        bytes=timing.bytes,
        clock=timing.clock,
        peak_bytes=timing.peak_bytes,
        margin=timing.margin,
    )


def median_interval(timing: Timing, *, seed: int = 0) -> tuple[float, float]:
    """Where the time of one call lies with 95 %: Student's t over processes, of a single process a percentile bootstrap."""
    if len(logs := process_medians(timing)) > 1:
        return student(logs)[1:]
    samples = np.asarray(timing.seconds, float)
    if samples.size < FEWEST_ROUNDS:
        return float(samples.min()), float(samples.max())
    draws = np.random.default_rng(seed).integers(samples.size, size=(RESAMPLES, samples.size))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(samples[draws], axis=1), [tail, 1 - tail])
    return float(low), float(high)


def another_machine(run: PastRun, latest: PastRun) -> str:
    """In which facts the machines differ, in words; "" where times of the runs may be compared."""
    mine, other = run.identity, latest.identity
    return ", ".join(
        f"{name.replace('_', ' ')} {mine.get(name)} instead of {other.get(name)}"
        for name in MACHINE
        if not alike(name, mine.get(name), other.get(name))
    )


def file_name(started: str) -> str:
    """ "2026-11-21T11:47:47+00:00" is "2026-11-21T11-47-47-00-00", which every file system takes."""
    return re.sub(r"[^0-9A-Za-z.]+", "-", started).strip("-.") or "unknown"


def _run(part: Sequence[Record]) -> PastRun:
    (start,) = of_kind(part, RunStart)
    summaries = [
        *of_kind(part, TimingSummary),
        *(summary_of(timing) for timing in of_kind(part, Timing) if timing.seconds),
    ]
    cells = {
        TimedCase(s.implementation, s.device, s.dtype, s.direction, s.case, s.flops): s for s in summaries
    }
    return PastRun(start, cells, of_kind(part, Ceiling), of_kind(part, Control), _tally(part))


def _tally(part: Sequence[Record]) -> Tally | None:
    verdicts = of_kind(part, Verdict)
    if not verdicts:
        return next(iter(of_kind(part, Tally)), None)
    outcomes = Counter(str(verdict.outcome) for verdict in verdicts)
    return Tally(outcomes=dict(sorted(outcomes.items())), examples=sum(v.examples for v in verdicts))


def _write(run: PastRun, path: Path) -> None:
    """Whole or not at all: under another name first."""
    beside = path.with_suffix(".partial")
    beside.unlink(missing_ok=True)
    with Writer(beside) as writer:
        writer.append(run.start)
        for ceiling in run.ceilings:
            writer.append(Ceiling(ceiling.device, ceiling.dtype, ceiling.what, ceiling.rate))
        rest: list[Record] = [*run.controls, *run.cells.values(), *([run.tally] if run.tally else [])]
        for record in rest:
            writer.append(record)
    beside.replace(path)


def _time(started: str) -> tuple[datetime.datetime, str]:
    try:
        time = datetime.datetime.fromisoformat(started)
    except ValueError:
        time = datetime.datetime.min
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)), started
