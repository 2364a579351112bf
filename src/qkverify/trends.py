"""The runs of one machine beside each other: how each cell's time went, with the machine's own drift taken out, and its steps.

A machine is not the same every day: its neighbours, its clock and its memory make all times longer or shorter. The pace of a run
is what all *other* implementations, and the ceilings, say of it together: each has one vote, which is how far its cells lie from
their own middles, and the median counts (Tukey's median polish of logarithms, of the cells and then of the votes), so that those
few that really changed have no say. An implementation has none in its own pace. A time divided by the pace is normalised, and
only normalised times are judged.

What this cannot see: a change that meets most implementations and the ceilings alike (a new framework, say) looks like the
machine's. The pace of each run and what changed in its software are shown for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from qkverify.history import Cell, PastRun, another_machine, in_order
from qkverify.results import Fact, TimingSummary
from qkverify.statistics import CONFIDENCE, QUIET, geometric_mean
from qkverify.steps import FEWEST_RUNS, Floats, steps_of

MOST_RUNS = 24  # the latest; older ones stay in the folder
POLISHING = 20  # rounds of the polish; it settles in a few
CEILINGS = ""  # no implementation has this name
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

    cell: Cell
    seconds: Floats
    normalised: Floats
    steps: tuple[Change, ...]
    last: Change | None  # the latest time against the one before it

    @property
    def times(self) -> list[float]:
        return [float(second) for second in self.seconds[np.isfinite(self.seconds)]]


class Finding(NamedTuple):
    """A step of `cases` of one implementation, device, dtype and direction (those of `cell`): a geometric mean."""

    cell: Cell
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
    votes = _votes(every, times, shown)
    pairs = dict.fromkeys((cell.device, cell.implementation) for cell in every)
    paces = {pair: _pace(votes[pair[0]], pair[1], len(shown)) for pair in pairs}
    off = np.array([paces[cell.device, cell.implementation] for cell in every]).reshape(times.shape)
    normalised = times - off
    kept = [
        i for i, cell in enumerate(every) if cell in latest.cells and np.isfinite(normalised[i]).sum() > 1
    ]
    cells = _judged([every[i] for i in kept], times[kept], normalised[kept], shown)
    pace = {}
    for device in dict.fromkeys(cell.device for cell in every):
        found = np.exp(_anchored(_polished(np.array(list(votes[device].values())))))
        pace[device] = tuple(float(p) for p in found)
    return Trends(tuple(shown), cells, pace, tuple(others), len(alike) - len(shown))


def findings_of(trends: Trends) -> list[Finding]:
    """The steps, those of one implementation at one run in one direction together; the newest first, then the largest."""
    groups: dict[tuple[Any, ...], list[tuple[Cell, Change]]] = {}
    for trend in trends.cells:
        cell = trend.cell
        for step in trend.steps:
            key = cell.implementation, cell.device, cell.dtype, cell.direction, step.since, step.ratio > 1
            groups.setdefault(key, []).append((cell, step))
    found = [_finding(group) for group in groups.values()]
    return sorted(found, key=lambda one: (-one.change.since, -abs(math.log(one.change.ratio))))


def _finding(group: Sequence[tuple[Cell, Change]]) -> Finding:
    """Geometric means of ratios and of the ends of their intervals: no narrower for many cases, since what a run's pace is off by
    is the same error in all of them."""
    cells, changes = zip(*group, strict=True)
    ends = [geometric_mean([getattr(one, end) for one in changes]) for end in ("ratio", "low", "high")]
    change = Change(changes[0].since, ends[0], ends[1], ends[2], min(one.runs_after for one in changes))
    return Finding(cells[0], tuple(cell.case for cell in cells), change)


def together(times: Sequence[Floats]) -> Floats:
    """Several cells as one, relative to their first run: geometric means, as if each cell had been timed in every run.

    Least squares of log time = cell + run, so that a run which lacks the slow cells does not look fast. NaN where none was timed.
    """
    table = np.log(np.array(times))
    rest, columns = table.copy(), np.zeros(table.shape[1])
    for _ in range(POLISHING):
        rest -= _mean(rest, axis=1)[:, None]
        shift = _mean(rest, axis=0)
        rest, columns = rest - shift, columns + shift
    columns[~np.isfinite(table).any(axis=0)] = np.nan
    return np.asarray(np.exp(columns - columns[np.isfinite(columns)][0]))


def software_changes(before: PastRun, after: PastRun) -> list[str]:
    """What differs in the software of two runs: "torch 2.12.0 → 2.13.0"."""

    def word(fact: Fact) -> str:
        return "none" if fact is None else str(fact)

    one, other = before.identity, after.identity
    found = [
        f"{name.replace('_', ' ')} {word(one.get(name))} → {word(other.get(name))}"
        for name in SOFTWARE
        if _parts(one.get(name)) != _parts(other.get(name))
    ]
    ours = (before.start.qkverify, after.start.qkverify)
    return [*([f"qkverify {ours[0]} → {ours[1]}"] if ours[0] != ours[1] else []), *found]


def _parts(fact: Fact) -> list[str]:
    """A fact that lists several (threads of each library) is the same in any order."""
    return sorted(str(fact).split(", "))


def _judged(
    cells: Sequence[Cell], times: Floats, normalised: Floats, runs: Sequence[PastRun]
) -> tuple[Trend, ...]:
    """Trends of the cells, steps judged together for each device: those of one page share its chance of a false word."""
    own = np.array([[_own(run.cells.get(cell)) for run in runs] for cell in cells]).reshape(times.shape)
    found: dict[int, Trend] = {}
    for device in dict.fromkeys(cell.device for cell in cells):
        rows = [i for i, cell in enumerate(cells) if cell.device == device]
        steps, noise = steps_of(normalised[rows], own[rows])
        for i, starts, scatter in zip(rows, steps, noise, strict=True):
            found[i] = Trend(
                cells[i],
                np.exp(times[i]),
                np.exp(normalised[i]),
                _changes(normalised[i], scatter, starts),
                _last(normalised[i], scatter),
            )
    return tuple(found[i] for i in range(len(cells)))


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


def _votes(cells: Sequence[Cell], times: Floats, runs: Sequence[PastRun]) -> dict[str, dict[str, Floats]]:
    """What each implementation, and the ceilings as CEILINGS, say of the runs, for each device: (runs,) each."""
    votes: dict[str, dict[str, Floats]] = {}
    for device in dict.fromkeys(cell.device for cell in cells):
        mine = votes[device] = {}
        for name in dict.fromkeys(cell.implementation for cell in cells if cell.device == device):
            rows = [cell.implementation == name and cell.device == device for cell in cells]
            mine[name] = _polished(times[rows])
        ceilings = _ceilings(runs, device)
        if len(ceilings):
            mine[CEILINGS] = _polished(ceilings)
    return votes


def _pace(votes: dict[str, Floats], implementation: str, runs: int) -> Floats:
    """The log pace by which an implementation is judged; zeros where it has no witness: it is judged as measured then."""
    others = [vote for name, vote in votes.items() if name != implementation]
    return _anchored(_polished(np.array(others))) if others else np.zeros(runs)


def _polished(table: Floats) -> Floats:
    """How far each column of logarithms lies off, over all rows, by median polish; NaN where a column has nothing."""
    rest, columns = table.copy(), np.zeros(table.shape[1])
    for _ in range(POLISHING):
        rest -= _middle(rest, axis=1)[:, None]
        shift = _middle(rest, axis=0)
        rest, columns = rest - shift, columns + shift
    columns[~np.isfinite(table).any(axis=0)] = np.nan
    return columns


def _anchored(columns: Floats) -> Floats:
    """Relative to the latest run."""
    return np.asarray(columns - columns[-1])


def _middle(table: Floats, axis: int) -> Floats:
    """Medians without NaN; 0 of nothing."""
    masked: Any = np.ma
    found: Floats = masked.median(masked.masked_invalid(table), axis=axis).filled(0.0)
    return found


def _mean(table: Floats, axis: int) -> Floats:
    """Means without NaN; 0 of nothing."""
    known = np.isfinite(table)
    return np.asarray(np.where(known, table, 0.0).sum(axis=axis) / np.maximum(known.sum(axis=axis), 1))


def _ceilings(runs: Sequence[PastRun], device: str) -> Floats:
    """Log times of the ceilings' work, a row for each that was measured on a device."""
    rates = [
        {(c.dtype, c.what): c.rate for c in run.ceilings if c.device == device and c.rate > 0} for run in runs
    ]
    keys = list(dict.fromkeys(key for one in rates for key in one))
    rows = [[-math.log(one[key]) if key in one else math.nan for one in rates] for key in keys]
    return np.array(rows, dtype=float).reshape(-1, len(runs))


def _log(summary: TimingSummary | None) -> float:
    return math.log(summary.median_seconds) if summary and summary.median_seconds > 0 else math.nan


def _own(summary: TimingSummary | None) -> float:
    """The deviation of a log median that its interval speaks of; 0 where there is none."""
    if summary is None or summary.low_seconds <= 0:
        return 0.0
    return math.log(summary.high_seconds / summary.low_seconds) / (2 * WIDTH)
