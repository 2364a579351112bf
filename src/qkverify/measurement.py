"""One group of cells, timed against each other.

Correct first: a cell is timed only when nothing speaks against it, and after timing the same call is made
once more and its output compared with the reference's sampled rows within the derived bound. A cell that
fails there shows that instead of a time.

Quiet enough: the fastest cell stands twice in the group under two names, prepared twice, so that its two
halves differ in nothing but chance and addresses. Their ratio is the A/A control.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import msgspec

from qkverify import conventions, frameworks
from qkverify.cells import Cell
from qkverify.clocks import Call, Clock, clock_for
from qkverify.contract import Implementation
from qkverify.errors import UnsupportedCase
from qkverify.nvml import Monitor, monitor_for
from qkverify.problems import Problem
from qkverify.results import Cache, Conditions, Control, Timing
from qkverify.runs import Run
from qkverify.sampling import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    Plan,
    Samples,
    Subject,
    Watch,
    calibrate,
    first_line,
    interleave,
    raised,
    too_slow,
)
from qkverify.spotcheck import margin_of
from qkverify.statistics import paired, paired_ratio
from qkverify.work import Work, work
from qkverify.workloads import Workload

AGAIN = " (again)"


@dataclass(frozen=True)
class Prepared:
    """A cell ready to run: `check` gives the margin of an output, None where it cannot be told."""

    call: Call
    clock: Clock
    work: Work
    check: Callable[[Any], float | None]


class Measured(NamedTuple):
    """Timings in the order of the cells; the fastest cell again, where anything ran; the seconds of a call as
    the warm-up saw them, of cells that the budget had no room for too; how long all of it took, and a round."""

    timings: list[Timing]
    twin: Timing | None
    call_seconds: dict[Cell, float]
    wall_seconds: float = 0.0
    round_seconds: float = 0.0
    conditions: Conditions | None = None

    @property
    def control(self) -> Control | None:
        """The A/A control: the fastest cell against its twin."""
        mine = [t for t in self.timings if self.twin and t.implementation == self.twin.implementation]
        return control_of(mine[0], self.twin) if self.twin and mine and mine[0].seconds else None


def measure(
    cells: Sequence[Cell],
    *,
    budget_seconds: float,
    limit_seconds: float | None = None,
    verified: Mapping[Cell, str | None] | None = None,
    peaks: Mapping[Cell, int] | None = None,
    expected_seconds: Mapping[Cell, float] | None = None,
    seed: int = 0,
    prepare: Callable[[Cell], Prepared] | None = None,
    most_rounds: int = MOST_ROUNDS,
    check: bool = True,
    twin_of: str = "",
    cache: Cache | None = None,
) -> Measured:
    """Time the cells of one group (one case, direction, device and dtype) against each other.

    The budget is what all of it should take; where the fewest rounds need more, it may grow to the limit, and
    cells for which even that is too little are left out, the slowest first. A cell whose call is expected to
    be too slow is not even tried. `verified` maps a cell to the reason why it must not be timed, or None; a
    cell that is not in it is tried. `peaks` are peak bytes, measured elsewhere. `prepare` makes a cell ready
    to run, and may raise UnsupportedCase. Without `check` the outputs are not compared with the reference: for
    cells of which this very call was checked before. The twin is that of the fastest cell, or of the named.
    `cache` as in `clocks.clock_for`.
    """
    start, limit = time.perf_counter(), budget_seconds if limit_seconds is None else limit_seconds
    prepare, reasons = (
        prepare or partial(prepared if check else _unchecked, cache=cache),
        dict(verified or {}),
    )
    ready, plans = dict[Cell, Prepared](), dict[str, Plan]()
    for cell in cells:
        seconds = (expected_seconds or {}).get(cell, 0.0)
        if reasons.get(cell) is None and seconds * FEWEST_ROUNDS > limit - (time.perf_counter() - start):
            reasons[cell] = too_slow(seconds)
        if reasons.get(cell) is None:
            found = _attempted(cell, prepare, limit)
            if isinstance(found, str):
                reasons[cell] = found
            else:
                ready[cell], plans[cell.implementation.name] = found
    subjects = {cell.implementation.name: Subject(one.call, one.clock) for cell, one in ready.items()}
    calls = {cell: plans[cell.implementation.name].call_seconds for cell in ready}
    named = [cell for cell in calls if cell.implementation.name == twin_of]
    control = min(named or calls, key=lambda cell: calls[cell], default=None)
    if control is not None:
        _add_twin(control, prepare, subjects, plans)
    # a tenth more than the samples: for what passes between them
    need = 1.1 * FEWEST_ROUNDS * sum(plan.cost_seconds for plan in plans.values())
    spent = time.perf_counter() - start
    rounds_seconds = max(budget_seconds - spent, min(need, limit - spent))
    watch = Watch(_monitor(cells[0].device) if cells else None)
    began = time.perf_counter()
    samples = interleave(
        subjects, budget_seconds=rounds_seconds, seed=seed, plans=plans, most_rounds=most_rounds, watch=watch
    )
    sampling_seconds = time.perf_counter() - began
    timings = [
        _timing(cell, ready.get(cell), samples, reasons.get(cell), (peaks or {}).get(cell), check)
        for cell in cells
    ]
    timings = [_marked(timing, watch) for timing in timings]
    rounds = max((one.rounds[-1] + 1 for one in samples.values() if one.rounds), default=0)
    twin = None if control is None else _twin(control, timings, samples)
    conditions = _conditions(cells[0], watch) if ready else None
    return Measured(
        timings,
        twin and _marked(twin, watch),
        calls,
        wall_seconds=time.perf_counter() - start,
        round_seconds=sampling_seconds / rounds if rounds else 0.0,
        conditions=conditions,
    )


def prepared(cell: Cell, *, seed: int = 0, cache: Cache | None = None) -> Prepared:
    """The cell itself: inputs native and in place, the clock of its device, the check by the reference."""
    run = run_of(cell.implementation, cell.device, cell.dtype)
    conventions_of_run = run.semantics["causal_alignment"], run.semantics["empty_rows"]
    problem = judged_by(problem_of(cell.workload, cell.dtype, seed), *conventions_of_run)
    return Prepared(
        run.callable(problem, cell.direction),
        _clock(cell.implementation.arrays, cell.device, cache),
        work(problem, cell.direction),
        lambda output: margin_of(run, problem, output, cell.direction, seed=seed),
    )


def _unchecked(cell: Cell, *, cache: Cache | None = None) -> Prepared:
    """The cell without what only a check needs: its conventions need not be found out."""
    run = Run(cell.implementation, cell.device, cell.dtype)
    call = run.callable(problem_of(cell.workload, cell.dtype, 0), cell.direction)
    return Prepared(
        call, _clock(cell.implementation.arrays, cell.device, cache), amount_of(cell), lambda output: None
    )


@lru_cache(maxsize=256)
def run_of(one: Implementation, device: str, dtype: str) -> Run:
    """The run of a cell, held to the conventions that it declares or shows."""
    found = conventions.detect(one, device, dtype)
    return Run(one, device, dtype, conventions.settled(found), **conventions.precisions_of(found, dtype))


@lru_cache(maxsize=2)
def problem_of(workload: Workload, dtype: str, seed: int) -> Problem:
    """The problem that all cells of a group share."""
    return workload.problem(dtype, seed=seed)


@lru_cache(maxsize=4)
def judged_by(problem: Problem, causal_alignment: str, empty_rows: str) -> Problem:
    """The problem under an implementation's conventions; the same object for all that share them."""
    return problem.replace(causal_alignment=causal_alignment, empty_rows=empty_rows)


@lru_cache(maxsize=8)
def _clock(arrays: str, device: str, cache: Cache | None) -> Clock:
    return clock_for(arrays, device, frameworks.get(arrays).synchronise, cache)


@lru_cache(maxsize=4)
def _monitor(device: str) -> Monitor | None:
    return monitor_for(device)


def _marked(timing: Timing, watch: Watch) -> Timing:
    marks = [number for number in timing.rounds if number in watch.marks]
    return msgspec.structs.replace(timing, disturbed=marks) if marks else timing


def _conditions(cell: Cell, watch: Watch) -> Conditions | None:
    """What the monitor saw, in the recorded form; None where there is no monitor."""
    if not watch.readings:
        return None
    case, _, device, dtype = cell.group

    def known(fact: str) -> list[float]:
        return [value for reading in watch.readings if (value := getattr(reading, fact)) is not None]

    return Conditions(
        case=case,
        direction=cell.direction,
        device=device,
        dtype=dtype,
        process=0,
        rounds=len(watch.readings),
        disturbed=dict(Counter(reason for reasons in watch.marks.values() for reason in reasons)),
        mhz_low=min(known("mhz"), default=None),
        mhz_high=max(known("mhz"), default=None),
        celsius=max(known("celsius"), default=None),
        watts=max(known("watts"), default=None),
        load=max(known("load"), default=None),
    )


def _attempted(
    cell: Cell, prepare: Callable[[Cell], Prepared], limit_seconds: float
) -> tuple[Prepared, Plan] | str:
    """The cell made ready, called once and warmed up, or why that failed."""
    try:
        found = prepare(cell)
        found.call()  # what is compiled or loaded once is not part of the warm-up
        return found, calibrate(Subject(found.call, found.clock), limit_seconds=limit_seconds)
    except (UnsupportedCase, NotImplementedError) as refusal:
        return f"not offered: {first_line(refusal)}"
    except Exception as error:  # the cell's own failure: recorded, and the others go on
        return raised(error)


def _add_twin(
    cell: Cell, prepare: Callable[[Cell], Prepared], subjects: dict[str, Subject], plans: dict[str, Plan]
) -> None:
    """The cell once more, ready for itself; where memory has no room for it, there is no control."""
    name = cell.implementation.name
    try:
        twin = prepare(cell)
        twin.call()
    except Exception:  # the cell itself was called before: this is not its failure, and the others go on
        return
    subjects[name + AGAIN], plans[name + AGAIN] = Subject(twin.call, twin.clock), plans[name]


def _twin(cell: Cell, timings: Sequence[Timing], samples: Mapping[str, Samples]) -> Timing | None:
    """The record of the second half of the A/A control; it is not among the timings."""
    taken = samples.get(cell.implementation.name + AGAIN, Samples())
    mine = next(t for t in timings if t.implementation == cell.implementation.name)
    return (
        msgspec.structs.replace(mine, seconds=taken.seconds, rounds=taken.rounds, disturbed=[])
        if taken.seconds
        else None
    )


def _timing(
    cell: Cell,
    ready: Prepared | None,
    samples: Mapping[str, Samples],
    reason: str | None,
    peak: int | None,
    check: bool,
) -> Timing:
    """The record of one cell, its output checked where it was timed."""
    taken = samples.get(cell.implementation.name, Samples(reason=reason or ""))
    margin = None
    if check and ready is not None and taken.seconds:
        margin, unverified = _checked(ready)
        taken = Samples(reason=unverified) if unverified else taken
    amount = ready.work if ready is not None else amount_of(cell)
    return Timing(
        case=cell.workload.name,
        sizes=cell.workload.sizes,
        causal=cell.workload.causal,
        options=cell.workload.options,
        implementation=cell.implementation.name,
        device=cell.device,
        dtype=cell.dtype,
        direction=cell.direction,
        clock="host" if ready is None else ready.clock.name,
        cache="hot" if ready is None else ready.clock.cache,
        seconds=[float(f"{seconds:.6g}") for seconds in taken.seconds],  # no clock has more digits
        rounds=taken.rounds,
        flops=amount.flops,
        bytes=amount.bytes,
        peak_bytes=peak,
        margin=margin,
        verified=bool(taken.seconds),
        reason=taken.reason,
    )


def unmeasured(cell: Cell, reason: str) -> Timing:
    """The record of a cell that was not timed, and why."""
    return _timing(cell, None, {}, reason, None, check=False)


def amount_of(cell: Cell) -> Work:
    """The work of a cell that was never made ready."""
    return work(cell.workload.outline(cell.dtype), cell.direction)


def _checked(ready: Prepared) -> tuple[float | None, str]:
    """The margin of what one more call returns, and why it does not verify the times; "" where it does."""
    try:
        margin = ready.check(ready.call())
    except Exception as error:
        return None, raised(error)
    if margin is None:
        return None, "its output cannot be checked by sampled rows"
    if margin <= 1:
        return margin, ""
    return margin, f"the timed call's output is wrong: {margin:.3g} times its bound away from the reference"


def control_of(one: Timing, again: Timing) -> Control | None:
    """The ratio of a cell to itself, over the rounds in which both halves ran; None where too few did."""
    mine, other, processes = paired(one, again)
    interval = paired_ratio(mine, other, processes)
    if not all(math.isfinite(number) for number in interval):
        return None  # too few rounds to say anything of the noise, and JSON has no infinity
    count = len(set(processes))
    return Control(
        one.case,
        one.implementation,
        one.device,
        one.dtype,
        *interval,
        direction=one.direction,
        processes=count,
    )
