"""The runs of one machine beside each other: how each cell's time went, with the machine's own drift taken out, and its steps.

Times are divided by the pace of their run first (see `pace`): a machine is not the same every day. Only these normalised times
are judged, by `steps`. The pace of each run and what changed in its software are shown beside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from qkverify.history.change_points import FEWEST_RUNS, Floats, steps_of
from qkverify.history.earlier_runs import PastRun, TimedCase, another_machine, in_order
from qkverify.history.machine_drift import anchored, drift_estimates, pace_for, polished
from qkverify.results import Fact, TimingSummary
from qkverify.results.fingerprint import alike
from qkverify.timing.statistics import CONFIDENCE, QUIET, geometric_mean

MOST_RUNS = 24  # the latest; older ones stay in the folder
SOFTWARE = (
    "os",
    "python",
    "numpy",
    "torch",
    "triton",
    "jax",
    "blas",
    "blas_threads",
    "torch_threads",
    "driver",
    "cuda",
)
WIDTH = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # half of an interval, in deviations


class Change(NamedTuple):
    """A ratio of normalised times, new over old, with its 95 % interval. `since` is the first run after it."""

    since: int
    ratio: float
    low: float
    high: float
    runs_after: int


@dataclass(frozen=True)
class Trend:
    """One cell over the runs: `seconds` as measured, `normalised` seconds at the latest run's pace; NaN where not timed."""

    cell: TimedCase
    seconds: Floats
    normalised: Floats
    steps: tuple[Change, ...]
    last: Change | None  # the latest time against the one before it

    @property
    def times(self) -> list[float]:
        return [float(second) for second in self.seconds[np.isfinite(self.seconds)]]


class DetectedStep(NamedTuple):
    """A step of `cases` of one implementation, device, dtype and direction (those of `cell`): a geometric mean."""

    cell: TimedCase
    cases: tuple[str, ...]
    change: Change


@dataclass(frozen=True)
class Trends:
    """`pace[device][i]` is the time that run i took for the same work, over all its cells, as a multiple of the latest run's; NaN
    where it timed nothing there."""

    runs: tuple[PastRun, ...]
    cells: tuple[Trend, ...]
    pace: dict[str, tuple[float, ...]]
    others: tuple[tuple[PastRun, str], ...]  # runs of another machine, with what differs
    older: int  # runs that are too old to be shown

    @property
    def judged(self) -> bool:
        return len(self.runs) >= FEWEST_RUNS


def trends_of(runs: Sequence[PastRun]) -> Trends:
    """The runs on the machine of the latest one; its cells, as far as an earlier run had them."""
    ordered = in_order(runs)
    if not ordered:
        return Trends((), (), {}, (), 0)
    latest = ordered[-1]
    others = [(run, why) for run in ordered if (why := another_machine(run, latest))]
    alike = [run for run in ordered if not another_machine(run, latest)]
    shown = alike[-MOST_RUNS:]
    every = list(dict.fromkeys(cell for run in shown for cell in run.cells))
    times = np.array([[_log(run.cells.get(cell)) for run in shown] for cell in every]).reshape(-1, len(shown))
    votes = drift_estimates(every, times, shown)
    pairs = dict.fromkeys((cell.device, cell.implementation) for cell in every)
    paces = {pair: pace_for(votes[pair[0]], pair[1], len(shown)) for pair in pairs}
    off = np.array([paces[cell.device, cell.implementation] for cell in every]).reshape(times.shape)
    normalised = times - off
    kept = [
        i for i, cell in enumerate(every) if cell in latest.cells and np.isfinite(normalised[i]).sum() > 1
    ]
    cells = _judged([every[i] for i in kept], times[kept], normalised[kept], shown)
    pace = {}
    for device in dict.fromkeys(cell.device for cell in every):
        factors = np.exp(anchored(polished(np.array(list(votes[device].values())))))
        pace[device] = tuple(float(p) for p in factors)
    return Trends(tuple(shown), cells, pace, tuple(others), len(alike) - len(shown))


def findings_of(trends: Trends) -> list[DetectedStep]:
    """The steps, those of one implementation at one run in one direction together; the newest first, then the largest."""
    groups: dict[tuple[Any, ...], list[tuple[TimedCase, Change]]] = {}
    for trend in trends.cells:
        cell = trend.cell
        for step in trend.steps:
            key = cell.implementation, cell.device, cell.dtype, cell.direction, step.since, step.ratio > 1
            groups.setdefault(key, []).append((cell, step))
    findings = [_finding(group) for group in groups.values()]
    return sorted(findings, key=lambda finding: (-finding.change.since, -abs(math.log(finding.change.ratio))))


def _finding(group: Sequence[tuple[TimedCase, Change]]) -> DetectedStep:
    """Geometric means of ratios and of the ends of their intervals: no narrower for many cases, since what a run's pace is off by
    is the same error in all of them."""
    cells, changes = zip(*group, strict=True)
    ends = [geometric_mean([getattr(step, end) for step in changes]) for end in ("ratio", "low", "high")]
    change = Change(changes[0].since, ends[0], ends[1], ends[2], min(step.runs_after for step in changes))
    return DetectedStep(cells[0], tuple(cell.case for cell in cells), change)


def software_changes(before: PastRun, after: PastRun) -> list[str]:
    """What differs in the software of two runs: "torch 2.12.0 → 2.13.0"."""

    def word(fact: Fact) -> str:
        return "none" if fact is None else str(fact)

    old, new = before.identity, after.identity
    differences = [
        f"{name.replace('_', ' ')} {word(old.get(name))} → {word(new.get(name))}"
        for name in SOFTWARE
        if not alike(name, old.get(name), new.get(name))
    ]
    ours = (before.start.qkverify, after.start.qkverify)
    return [*([f"qkverify {ours[0]} → {ours[1]}"] if ours[0] != ours[1] else []), *differences]


def _judged(
    cells: Sequence[TimedCase], times: Floats, normalised: Floats, runs: Sequence[PastRun]
) -> tuple[Trend, ...]:
    """Trends of the cells, steps judged together for each device: those of one page share its chance of a false word."""
    interval_noise = np.array([[_own(run.cells.get(cell)) for run in runs] for cell in cells]).reshape(
        times.shape
    )
    trends: dict[int, Trend] = {}
    for device in dict.fromkeys(cell.device for cell in cells):
        rows = [i for i, cell in enumerate(cells) if cell.device == device]
        steps, noise = steps_of(normalised[rows], interval_noise[rows])
        for i, starts, scatter in zip(rows, steps, noise, strict=True):
            trends[i] = Trend(
                cells[i],
                np.exp(times[i]),
                np.exp(normalised[i]),
                _changes(normalised[i], scatter, starts),
                _last(normalised[i], scatter),
            )
    return tuple(trends[i] for i in range(len(cells)))


def _changes(series: Floats, noise: Floats, starts: Sequence[int]) -> tuple[Change, ...]:
    """The steps of a series; those of less than 1 % are not called, as nowhere in the report."""
    edges = [0, *starts, len(series)]
    changes = []
    for begin, since, end in zip(edges, edges[1:], edges[2:], strict=False):
        change = _change(series, noise, range(begin, since), range(since, end))
        if abs(math.log(change.ratio)) > QUIET:
            changes.append(change)
    return tuple(changes)


def _last(series: Floats, noise: Floats) -> Change | None:
    known = [i for i, value in enumerate(series) if math.isfinite(value)]
    if len(known) < 2 or known[-1] != len(series) - 1:
        return None
    return _change(series, noise, known[-2:-1], known[-1:])


def _change(series: Floats, noise: Floats, before: Sequence[int], after: Sequence[int]) -> Change:
    levels, variance = [], 0.0
    for part in (before, after):
        known = [i for i in part if math.isfinite(series[i])]
        weights = noise[known] ** -2.0
        levels.append(float((weights * series[known]).sum() / weights.sum()))
        variance += float(1 / weights.sum())
    log, reach = levels[1] - levels[0], WIDTH * math.sqrt(variance)
    count = sum(math.isfinite(series[i]) for i in after)
    return Change(int(after[0]), math.exp(log), math.exp(log - reach), math.exp(log + reach), count)


def _log(summary: TimingSummary | None) -> float:
    return math.log(summary.median_seconds) if summary and summary.median_seconds > 0 else math.nan


def _own(summary: TimingSummary | None) -> float:
    """The deviation of a log median that its interval speaks of; 0 where there is none."""
    if summary is None or summary.low_seconds <= 0:
        return 0.0
    return math.log(summary.high_seconds / summary.low_seconds) / (2 * WIDTH)
