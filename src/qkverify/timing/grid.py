"""The grid that a report is made from: every implementation, case, dtype and device, within a budget.

`qkverify bench`, `make report` and `pytest benchmarks` all come here or to `measurement`, which times one
group. The grid is swept several times, each time by a fresh process. The first sweep
shares its time among the groups by the square root of their work (long cases need more time, and short ones
deserve more than their length), the short ones first; the others go where the first saw the most scatter. After the first,
ceilings are measured, and what had no room for several calls is called once, in a process of its own, and in rounds by later
ones where they have the time. Then comes peak memory, in processes of its own, of the timed cells that show how memory grows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from qkverify.contract import Implementation
from qkverify.results import Cache, Ceiling, Direction, Mark, Scatter, Timing, Verdict, Writer
from qkverify.timing.benchmark_cases import DIRECTIONS, BenchmarkCase, cells_of, groups_of, why_not_run
from qkverify.timing.ceilings import exceeds_products, impossible, measure_ceilings, single_thread_ceilings
from qkverify.timing.clocks import now
from qkverify.timing.marks import Known, against
from qkverify.timing.measurement import CALLS, Prepared, measure, prepared, refused
from qkverify.timing.memory import Server
from qkverify.timing.merge_samples import Gathered, allocate
from qkverify.timing.sampling import FEWEST_ROUNDS, OUT_OF_TIME, SHORT_SECONDS
from qkverify.timing.statistics import drop_disturbed_rounds, median, scatter_of
from qkverify.timing.timing_worker import Sweep, Terms
from qkverify.timing.workloads import Workload, small_grid

__all__ = [
    "OUT_OF_TIME",
    "Prepared",
    "Progress",
    "measure",
    "measure_peaks",
    "prepared",
    "run_grid",
]

Planned = tuple[Gathered, Terms, list[BenchmarkCase]]  # a group, its terms, and the cells of it to measure
Progress = Callable[[float, str], None]  # the fraction of the budget that is spent, and what is next

CEILING_SECONDS = 0.5
CEILING_SHARE = 0.1  # of the budget, at most
MEMORY_SHARE = 0.08
SERVER_SECONDS = 3.0  # about what a new process needs to import a framework
# Of what is left goes to the first of several sweeps, which checks every output, and after it to what takes long; the others
# share the rest.
FIRST_SHARE = SLOW_SHARE = 0.5
# Of the first sweep, for rounds of each group: what a case takes and how it scatters; the rest is for where it matters. And of
# every later one: of short calls that pays for many more than the fewest.
FIRST_SECONDS, CHEAP_SECONDS = 0.3, 0.4
PROCESSES, GRID_ROUNDS = 4, 100  # of a process at most: rounds of short calls are nearly free
MOST_SECONDS = 3.0  # likewise, where a group scatters most
LARGEST_SHARE = 0.1  # of what is left, for a group whose fewest rounds need more than its share
AGAIN_SHARE = 0.1  # of what is left, for a group of which cells have fewer than the fewest rounds
LEAST_SHARE = 0.02  # of what is left, for the shortest of groups
GROWTH = (
    "float32",
    "bfloat16",
    "float16",
    "float64",
)  # dtypes, the first that there is shows how memory grows
PROBE = Workload(name="probe", source="as short as tells", heads=8, key_size=64, queries=192, causal=False)
NO_LIMIT_SECONDS = 1e9  # JSON has no infinity


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
    processes: int = PROCESSES,
    most_rounds: int = GRID_ROUNDS,
    cache: Cache | None = None,
    lawful_only: bool = False,
) -> list[Timing]:
    """Ceilings, timings and controls of the grid, written in this order; returns the timings.

    `workloads` gives the cases of a device. What `verdicts` and findings say stands beside each time, and bars it
    as `marks` says; with `lawful_only`, wherever anything is known against a cell. `most_rounds` is that of one
    process, `cache` as in `clocks.clock_for`. The budget covers all of it, to within one call: what it had no room for
    is written without times and with that reason.
    """
    start, say = now(), progress or (lambda fraction, text: None)

    reserved = 0.0  # for the ceilings, which are measured after the first sweep

    def left() -> float:
        return max(0.0, budget_seconds - reserved - (now() - start))

    def passed() -> float:
        return min(1.0, (now() - start) / budget_seconds)

    cells = cells_of(
        implementations, workloads=workloads, devices=devices, dtypes=dtypes, directions=directions
    )
    known = Known(verdicts)
    marks = {cell: known.marks(cell) for cell in cells}
    reasons = why_not(cells, known, marks, lawful_only=lawful_only)
    live = [cell for cell in cells if reasons[cell] is None]
    places = list(dict.fromkeys((cell.device, cell.dtype) for cell in live))
    ceilings: list[Ceiling] = []
    seconds = min(CEILING_SECONDS, CEILING_SHARE * budget_seconds / (len(places) + 1))
    reserved = min(CEILING_SHARE * budget_seconds, 2 * seconds * (len(places) + 1))
    plan = _Plan(
        groups_of(cells),
        reasons,
        marks,
        left,
        seed=seed,
        most_rounds=most_rounds,
        cache=cache,
        first_seconds=FIRST_SECONDS if processes > 1 else None,
    )

    def measure_all(sweep: Sweep, planned: Iterable[Planned], process: int) -> None:
        for group, terms, chosen in planned:
            how = f"process {process + 1} of {processes}" if process < processes else "one call"
            say(passed(), f"{group.cells[0].title}, {how}")
            plan.run(sweep, group, terms, process, chosen)

    try:
        with Sweep() as sweep:
            plan.foretell(sweep)
            share = FIRST_SHARE if processes > 1 else 1.0
            measure_all(sweep, plan.first(now() + share * left()), 0)
        say(passed(), "ceilings")
        reserved = 0.0
        ceilings += measure_ceilings(places, seconds=seconds)
        share = SLOW_SHARE if processes > 1 else 1.0
        with Sweep() as sweep:
            measure_all(sweep, plan.slow(now() + share * left()), processes)
        say(passed(), "peak memory")
        plan.take_peaks(min(MEMORY_SHARE * budget_seconds, left() / 2))
        for process in range(1, processes):
            if left() < SERVER_SECONDS:
                break
            until = now() + left() / plan.worthwhile(processes - process)
            with Sweep() as sweep:
                measure_all(sweep, itertools.chain(plan.again(process), plan.later(process, until)), process)
        with Sweep() as sweep:
            measure_all(sweep, plan.slow(math.inf, at_last=True), processes)
    finally:  # of a run that is interrupted, what it had
        for group in plan.groups.values():
            group.timings = [believed(timing, ceilings) for timing in group.timings]
        for ceiling in highest(ceilings):  # after that, for it may find that one was too low
            writer.append(ceiling)
        scatters = plan.scatters()
        for group in plan.groups.values():
            for timing in group.timings:
                writer.append(timing)
            control = group.control(scatters[group.cells[0].device])
            if control is not None:
                writer.append(control)
            for conditions in group.conditions:
                writer.append(conditions)
    say(1.0, "done")
    return [timing for group in plan.groups.values() for timing in group.timings]


def believed(timing: Timing, ceilings: list[Ceiling]) -> Timing:
    """The timing, without its times where they are more than the device can do.

    A ceiling that was measured while others used the device is too low: before anything is refused, and where the products of
    the call's own dtype are exceeded, what one thread reaches by itself joins the `ceilings`, for every thread that there is.
    """
    if not timing.seconds:
        return timing
    seconds = median(drop_disturbed_rounds(timing))
    if not impossible(timing, seconds, ceilings) and not exceeds_products(timing, seconds, ceilings):
        return timing
    if timing.device == "cpu":
        ceilings += single_thread_ceilings(timing.dtype)
    else:
        ceilings += measure_ceilings([(timing.device, "float32"), (timing.device, timing.dtype)])
    why = impossible(timing, seconds, ceilings)
    return refused(timing, why) if why else timing


def highest(ceilings: Iterable[Ceiling]) -> list[Ceiling]:
    """Of each kind the one that reaches furthest."""
    best: dict[tuple[str, str, str], Ceiling] = {}
    for ceiling in ceilings:
        key = ceiling.device, ceiling.dtype, ceiling.what
        if key not in best or ceiling.rate > best[key].rate:
            best[key] = ceiling
    return list(best.values())


class _Plan:
    """The groups of a run, what is known of them, and on what terms each sweep measures them."""

    def __init__(
        self,
        groups: Sequence[list[BenchmarkCase]],
        reasons: Mapping[BenchmarkCase, str | None],
        marks: Mapping[BenchmarkCase, list[Mark]],
        left: Callable[[], float],
        *,
        seed: int,
        most_rounds: int,
        cache: Cache | None,
        first_seconds: float | None,
    ) -> None:
        self.groups = {cells[0].group: Gathered(cells, marks) for cells in groups}
        self._reasons, self._left, self._speeds = dict(reasons), left, Speeds()
        self._calls, self._put_off = dict[BenchmarkCase, float](), dict[BenchmarkCase, float]()
        self._seed, self._cache = seed, cache
        self._most_rounds, self._first_seconds = most_rounds, first_seconds

    def first(self, until: float) -> Iterator[Planned]:
        """The groups of the first sweep, the short ones first, each with its terms and its cells; what would take long is put
        off."""

        def left() -> float:
            return max(0.0, min(until - now(), self._left()))

        seeds = itertools.count(self._seed)
        ordered = sorted(self.groups.values(), key=lambda group: scores_of(group.cells[0]))
        for cells, share in shared([group.cells for group in ordered], self._reasons, left):
            short = SHORT_SECONDS * (self._left() > 0)
            limit = max(share, LARGEST_SHARE * left(), short)
            self._put_off |= {
                cell: seconds
                for cell, seconds in self._speeds.expected(cells).items()
                if seconds > SHORT_SECONDS
                and CALLS * seconds > limit / len(cells)
                and not self._reasons[cell]
            }
            terms = Terms(
                # past this sweep's share of the time everybody still gets the fewest rounds
                budget_seconds=max(share, short),
                limit_seconds=limit,
                stop_seconds=self._left(),
                sampling_seconds=self._first_seconds,
                seed=next(seeds),
                most_rounds=self._most_rounds,
                cache=self._cache,
            )
            yield self.groups[cells[0].group], terms, cells

    def slow(self, until: float, *, at_last: bool = False) -> Iterator[Planned]:
        """What was put off, the shortest first: one call each, as long as there is time. A run that timed nothing yet owes
        `at_last` a call of each cell of its shortest group, however late it is."""
        seeds = itertools.count(self._seed + 2 * PROCESSES * len(self.groups))
        late = self._without_a_call()
        waiting = {**dict.fromkeys(late, 0.0), **self._speeds.expected(late), **self._put_off}
        in_order = [cell for cell, _ in sorted(waiting.items(), key=lambda pair: pair[1])]
        owed = in_order[0].group if at_last and in_order and not self._calls else None
        for cell in in_order:
            if (self._left() <= 0 or now() > until) and cell.group != owed:
                continue
            self._put_off.pop(cell, None)
            terms = Terms(
                budget_seconds=max(self._left(), SHORT_SECONDS),
                limit_seconds=max(self._left(), SHORT_SECONDS),
                stop_seconds=NO_LIMIT_SECONDS,
                seed=next(seeds),
                most_rounds=1,
                cache=self._cache,
                once=True,
            )
            yield self.groups[cell.group], terms, [cell]

    def _without_a_call(self) -> list[BenchmarkCase]:
        """The cells that could run, and to which the time did not come."""
        late = [cell for group in self.groups.values() for cell in group.late]
        return [cell for cell in late if self._reasons[cell] is None]

    def again(self, process: int) -> Iterator[Planned]:
        """Groups in which something has fewer than the fewest rounds, the shortest first: these rounds of what was timed there,
        the fastest of it, as much as takes no more than a part of what is left."""
        seeds = itertools.count(self._seed + (process + PROCESSES) * len(self.groups))
        waiting = {name: group.short_of_rounds for name, group in self.groups.items()}
        for name in sorted(
            filter(waiting.get, waiting), key=lambda name: self._seconds_of_call(waiting[name])
        ):
            group = self.groups[name]
            chosen = self._affordable(group)
            if len(chosen) < 2 or not set(chosen) & set(waiting[name]):
                continue
            terms = Terms(
                budget_seconds=self._cost_again(chosen),
                limit_seconds=NO_LIMIT_SECONDS,
                seed=next(seeds),
                most_rounds=FEWEST_ROUNDS,
                check=False,
                twin_of=group.twin_of,
                cache=self._cache,
            )
            yield group, terms, chosen

    def _affordable(self, group: Gathered) -> list[BenchmarkCase]:
        """The fastest of what was timed, as many as take no more than a part of what is left."""
        chosen: list[BenchmarkCase] = []
        for cell in sorted(group.timed, key=self._calls.__getitem__):
            if self._cost_again([*chosen, cell]) > AGAIN_SHARE * self._left():
                break
            chosen.append(cell)
        return chosen

    def _cost_again(self, cells: Sequence[BenchmarkCase]) -> float:
        """To get ready, and the fewest rounds; the fastest stands twice."""
        return (1 + FEWEST_ROUNDS) * (self._seconds_of_call(cells) + self._calls[cells[0]])

    def _seconds_of_call(self, cells: Iterable[BenchmarkCase]) -> float:
        return sum(self._calls[cell] for cell in cells)

    def worthwhile(self, most: int) -> int:
        """Into how many further sweeps what is left is best divided: each needs time to get ready, and for the fewest rounds."""
        live = [group for group in self.groups.values() if group.live]
        one = SERVER_SECONDS + sum(group.cost(group.seconds_of(group.fewest_rounds)) for group in live)
        return max(1, min(most, int(self._left() / one)))

    def later(self, process: int, until: float) -> Iterator[Planned]:
        """The groups of a further sweep, each with its terms and the cells to measure: the time goes where intervals are wide."""
        seeds = itertools.count(self._seed + process * len(self.groups))
        live = {
            name: group
            for name, group in self.groups.items()
            if group.live and group.timed and group.last_process != process
        }
        left = max(0.0, min(until - now(), self._left()))
        for name, seconds in allocate(live, left, CHEAP_SECONDS, MOST_SECONDS).items():
            cost = live[name].cost(seconds)
            if cost > self._left():
                continue
            terms = Terms(
                budget_seconds=cost,
                limit_seconds=NO_LIMIT_SECONDS,  # it fitted before, and a case without this process would have a gap
                sampling_seconds=seconds,
                seed=next(seeds),
                most_rounds=min(self._most_rounds, live[name].rounds_in(seconds, self._most_rounds)),
                check=False,
                twin_of=live[name].twin_of,
                cache=self._cache,
            )
            yield live[name], terms, live[name].live

    def run(
        self, sweep: Sweep, group: Gathered, terms: Terms, process: int, cells: list[BenchmarkCase]
    ) -> None:
        """These cells of one group in one process, added to what is known of it."""
        verified = {cell: self._reasons[cell] or self._why_not_now(cell, terms) for cell in cells}
        # who is measured again: what it took; the first time what shorter cases foretell
        known = {cell: self._calls[cell] for cell in cells if cell in self._calls}
        expected = self._speeds.expected(cells) if terms.check else known
        measured = sweep.measure(cells, terms, verified=verified, peaks={}, expected_seconds=expected)
        self._speeds.learn(measured.call_seconds)
        self._calls |= measured.call_seconds if terms.check else {}
        group.add(measured, process)

    def _why_not_now(self, cell: BenchmarkCase, terms: Terms) -> str | None:
        return OUT_OF_TIME if not terms.budget_seconds or cell in self._put_off else None

    def foretell(self, sweep: Sweep) -> None:
        """One short call of everybody, where no case is as short: what it takes says what comes last, and what first."""
        live = [cell for cell, reason in self._reasons.items() if reason is None]
        if not live or min(map(scores_of, live)) <= scores_of(replace(live[0], workload=PROBE)):
            return
        probes = dict.fromkeys(
            replace(cell, workload=PROBE)
            for cell in live
            if why_not_run(replace(cell, workload=PROBE)) is None
        )
        for cells in groups_of(probes):
            # warmed up, since the first call of all loads, compiles and wakes threads, and foretells nothing
            terms = Terms(
                budget_seconds=0.0,
                limit_seconds=self._left() / 4,
                seed=self._seed,
                most_rounds=1,
                check=False,
                stop_seconds=self._left() / 4,
            )
            measured = sweep.measure(cells, terms, verified={}, peaks={}, expected_seconds={})
            self._speeds.learn(measured.call_seconds)

    def scatters(self) -> dict[str, Scatter | None]:
        """How processes scatter on each device, by all groups there."""
        pairs: dict[str, list[tuple[Timing, Timing]]] = {}
        for group in self.groups.values():
            pairs.setdefault(group.cells[0].device, []).extend(group.pairs)
        return {device: scatter_of(compared) for device, compared in pairs.items()}

    def take_peaks(self, budget_seconds: float) -> None:
        """Peak memory of the cells that show how it grows and were timed."""
        cells = [cell for cell in self._reasons if cell in self._calls]
        peaks = measure_peaks(cells, budget_seconds=budget_seconds, call_seconds=self._calls)
        for group in self.groups.values():
            group.take_peaks(peaks)


def shared(
    groups: Sequence[list[BenchmarkCase]],
    reasons: Mapping[BenchmarkCase, str | None],
    left: Callable[[], float],
) -> Iterator[tuple[list[BenchmarkCase], float]]:
    """The groups, each with the seconds that it may take of what is left.

    Early groups may take twice their fair share: they are the important ones (see `cells_of`).
    """
    weights = [_weight(group, reasons) for group in groups]
    for index, group in enumerate(groups):
        fair = weights[index] / (sum(weights[index:]) or 1.0)
        yield group, left() * min(1.0, max(LEAST_SHARE, 2 * fair))


class Speeds:
    """What shorter cases foretell of longer ones, so that calls which cannot fit are not even tried."""

    def __init__(self) -> None:
        self._seconds_per_score: dict[tuple[str, str, str, str], float] = {}

    def learn(self, call_seconds: Mapping[BenchmarkCase, float]) -> None:
        for cell, seconds in call_seconds.items():
            self._seconds_per_score[self._key(cell)] = seconds / max(1, scores_of(cell))

    def expected(self, cells: Iterable[BenchmarkCase]) -> dict[BenchmarkCase, float]:
        """Half of what the last case of the same kind foretells: large cases are often kinder."""
        known = self._seconds_per_score
        return {c: known[self._key(c)] * scores_of(c) / 2 for c in cells if self._key(c) in known}

    @staticmethod
    def _key(cell: BenchmarkCase) -> tuple[str, str, str, str]:
        return cell.implementation.name, cell.device, cell.dtype, cell.direction


def scores_of(cell: BenchmarkCase) -> int:
    """How many scores the cell's whole score matrix has, over batch and heads."""
    s = cell.workload.sizes
    return s["B"] * s["H"] * s["Q"] * s["K"]


def why_not(
    cells: Iterable[BenchmarkCase],
    known: Known,
    marks: Mapping[BenchmarkCase, list[Mark]],
    *,
    lawful_only: bool = False,
) -> dict[BenchmarkCase, str | None]:
    """Why each cell must not be timed, None for those that may be: the machine first, then what is known against them."""
    return {
        cell: why_not_run(cell) or known.refused(cell) or against(marks[cell], lawful_only=lawful_only)
        for cell in cells
    }


def measure_peaks(
    cells: Iterable[BenchmarkCase],
    *,
    budget_seconds: float,
    call_seconds: Mapping[BenchmarkCase, float] | None = None,
) -> dict[BenchmarkCase, int]:
    """Peak bytes of the cells that show how memory grows, as many as the budget allows, long cases last.

    A budget that the start of the measuring process would use up gives none; nor is a call begun that takes longer than
    what is left of it, by the `call_seconds` that are known.
    """
    deadline, peaks, cells = now() + budget_seconds, dict[BenchmarkCase, int](), list(cells)
    shown = showing_growth(cells)
    if budget_seconds < SERVER_SECONDS:
        return peaks
    with Server() as server:
        for cell in cells:
            first = 2 * (call_seconds or {}).get(cell, 0.0)  # in a new process, which finds nothing warm
            if now() + first > deadline:
                continue
            if cell in shown:
                peak = server.peak_bytes(
                    cell.implementation, cell.workload, cell.device, cell.dtype, cell.direction
                )
                if peak is not None:
                    peaks[cell] = peak
    return peaks


def showing_growth(cells: Sequence[BenchmarkCase]) -> set[BenchmarkCase]:
    """The cells for which peak memory is measured: forward, in the first of float32, bfloat16, ... that the cells of an
    implementation on a device have. Growth with length does not depend on the dtype."""
    dtypes: dict[tuple[Implementation, str], str] = {}
    for cell in sorted(cells, key=lambda cell: GROWTH.index(cell.dtype)):
        dtypes.setdefault((cell.implementation, cell.device), cell.dtype)
    return {
        cell
        for cell in cells
        if cell.direction == "forward" and cell.dtype == dtypes[cell.implementation, cell.device]
    }


def _weight(group: Sequence[BenchmarkCase], reasons: Mapping[BenchmarkCase, str | None]) -> float:
    """The share of the budget that a group deserves: cells to time, times the square root of their scores."""
    return sum(reasons[cell] is None for cell in group) * math.sqrt(scores_of(group[0]))
