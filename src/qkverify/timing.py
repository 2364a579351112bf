"""The grid that a report is made from: every implementation, case, dtype and device, within a budget.

`qkverify bench`, `make report` and `pytest benchmarks` all come here or to `measurement`, which times one
group. The grid writes what it finds as it goes: ceilings first, then for each group its timings and its A/A
control. Peak memory is measured before, in processes of its own, for the cells that show how memory grows. A
budget is shared among the groups by the square root of their work: long cases need more time, and short ones
deserve more than their length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from qkverify.ceilings import measure_ceilings
from qkverify.cells import (
    DIRECTIONS,
    Cell,
    cells_of,
    groups_of,
    why_not_declared,
    why_not_run,
    why_not_verified,
)
from qkverify.contract import Implementation
from qkverify.measurement import Measured, Prepared, measure, prepared
from qkverify.memory import Server
from qkverify.results import Direction, Timing, Verdict, Writer
from qkverify.workloads import Workload, small_grid

__all__ = ["Measured", "Prepared", "Progress", "measure", "measure_peaks", "prepared", "run_grid"]

Progress = Callable[[float, str], None]  # the fraction of the budget that is spent, and what is next

CEILING_SECONDS = 0.5
CEILING_SHARE = 0.1  # of the budget, at most
MEMORY_SHARE = 0.15
SERVER_SECONDS = 3.0  # about what a new process needs to import a framework
LARGEST_SHARE = 1 / 3  # of what is left, for a group that cannot do with less
OUT_OF_TIME = "the time budget had run out"


def run_grid(
    writer: Writer,
    implementations: Iterable[Implementation],
    *,
    budget_seconds: float = 90.0,
    progress: Progress | None = None,
    verdicts: Iterable[Verdict] | None = None,
    workloads: Callable[[str], Sequence[Workload]] = small_grid,
    devices: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    directions: Sequence[Direction] = DIRECTIONS,
    seed: int = 0,
) -> list[Timing]:
    """Ceilings, timings and controls of the grid, each written as soon as it is known; returns the timings.

    `workloads` gives the cases of a device. With `verdicts` only cells that passed their laws are timed;
    without, all but those that declare a finding. The budget covers all of it, to within the last group's
    warm-up: what it had no room for is written without times and with that reason.
    """
    start, say = time.perf_counter(), progress or (lambda fraction, text: None)

    def left() -> float:
        return max(0.0, budget_seconds - (time.perf_counter() - start))

    cells = cells_of(
        implementations, workloads=workloads, devices=devices, dtypes=dtypes, directions=directions
    )
    reasons = why_not(cells, verdicts)
    live = [cell for cell in cells if reasons[cell] is None]
    say(0.0, "ceilings")
    places = list(dict.fromkeys((cell.device, cell.dtype) for cell in live))
    seconds = min(CEILING_SECONDS, CEILING_SHARE * budget_seconds / (len(places) + 1))
    for ceiling in measure_ceilings(places, seconds=seconds):
        writer.append(ceiling)
    say(1 - left() / budget_seconds, "peak memory")
    peaks = measure_peaks(live, budget_seconds=MEMORY_SHARE * budget_seconds)
    timings, speeds = list[Timing](), Speeds()
    for group, share in shared(groups_of(cells), reasons, left):
        say(1 - left() / budget_seconds, group[0].title)
        found = measure(
            group,
            budget_seconds=share,
            limit_seconds=LARGEST_SHARE * left(),
            verified=reasons if share else {cell: reasons[cell] or OUT_OF_TIME for cell in group},
            peaks=peaks,
            expected_seconds=speeds.expected(group),
            seed=seed + len(timings),
        )
        speeds.learn(found.call_seconds)
        for record in found.timings:
            writer.append(record)
        if found.control is not None:
            writer.append(found.control)
        timings += found.timings
    say(1.0, "done")
    return timings


def shared(
    groups: Sequence[list[Cell]], reasons: Mapping[Cell, str | None], left: Callable[[], float]
) -> Iterator[tuple[list[Cell], float]]:
    """The groups, each with the seconds that it may take of what is left.

    Early groups may take twice their fair share: they are the important ones (see `cells_of`).
    """
    weights = [_weight(group, reasons) for group in groups]
    for index, group in enumerate(groups):
        fair = weights[index] / (sum(weights[index:]) or 1.0)
        yield group, left() * min(1.0, 2 * fair)


class Speeds:
    """What shorter cases foretell of longer ones, so that calls which cannot fit are not even tried."""

    def __init__(self) -> None:
        self._seconds_per_score: dict[tuple[str, str, str, str], float] = {}

    def learn(self, call_seconds: Mapping[Cell, float]) -> None:
        for cell, seconds in call_seconds.items():
            self._seconds_per_score[self._key(cell)] = seconds / max(1, scores_of(cell))

    def expected(self, cells: Iterable[Cell]) -> dict[Cell, float]:
        """Half of what the last case of the same kind foretells: large cases are often kinder."""
        known = self._seconds_per_score
        return {c: known[self._key(c)] * scores_of(c) / 2 for c in cells if self._key(c) in known}

    @staticmethod
    def _key(cell: Cell) -> tuple[str, str, str, str]:
        return cell.implementation.name, cell.device, cell.dtype, cell.direction


def scores_of(cell: Cell) -> int:
    """How many scores the cell's whole score matrix has, over batch and heads."""
    s = cell.workload.sizes
    return s["B"] * s["H"] * s["Q"] * s["K"]


def why_not(cells: Iterable[Cell], verdicts: Iterable[Verdict] | None = None) -> dict[Cell, str | None]:
    """Why each cell must not be timed, None for those that may be: the machine first, then the laws."""
    unverified = why_not_declared if verdicts is None else why_not_verified(verdicts)
    return {cell: why_not_run(cell) or unverified(cell) for cell in cells}


def measure_peaks(cells: Iterable[Cell], *, budget_seconds: float) -> dict[Cell, int]:
    """Peak bytes of the cells that show how memory grows, as many as the budget allows, long cases last.

    Those are the forward passes in the first of float32, bfloat16, ... that each implementation has: growth
    with length does not depend on the dtype. A budget that the start of the measuring process would use up
    gives none.
    """
    deadline, peaks = time.perf_counter() + budget_seconds, dict[Cell, int]()
    if budget_seconds < SERVER_SECONDS:
        return peaks
    with Server() as server:
        for cell in cells:
            if time.perf_counter() > deadline:
                break
            if shows_growth(cell):
                peak = server.peak_bytes(
                    cell.implementation, cell.workload, cell.device, cell.dtype, cell.direction
                )
                if peak is not None:
                    peaks[cell] = peak
    return peaks


def shows_growth(cell: Cell) -> bool:
    """Whether peak memory is measured for a cell."""
    one = cell.implementation
    first = next(
        (dtype for dtype in ("float32", "bfloat16", "float16") if dtype in one.dtypes), one.dtypes[0]
    )
    return cell.direction == "forward" and cell.dtype == first


def _weight(group: Sequence[Cell], reasons: Mapping[Cell, str | None]) -> float:
    """The share of the budget that a group deserves: cells to time, times the square root of their scores."""
    return sum(reasons[cell] is None for cell in group) * math.sqrt(scores_of(group[0]))
