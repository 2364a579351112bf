"""One group of cells, timed against each other.

Correct first: every call of a cell gets numbers of its own, and after timing the same call is made once more on
numbers that were never seen, and judged (see `output_check`). A cell that fails there shows that instead of a time.

Quiet enough: the fastest cell stands twice in the group under two names, prepared twice, so that its two
halves differ in nothing but chance and addresses. Their ratio is the A/A control.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import msgspec
import numpy as np

from qkverify.contract import Implementation, frameworks
from qkverify.errors import UnsupportedCase, first_line, raised
from qkverify.probes import conventions
from qkverify.problem.attention_problem import Problem
from qkverify.results import Cache, Conditions, Control, Direction, Scatter, Timing
from qkverify.runs.run import Run
from qkverify.timing import output_check, sampled_rows
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.clocks import Call, Clock, clock_for, now, process_time, restore_clocks
from qkverify.timing.fresh_inputs import WINDOWS, FreshCall, Inputs
from qkverify.timing.kept_calls import KeptCalls
from qkverify.timing.nvml import Monitor, monitor_for
from qkverify.timing.output_check import AttentionCheck, Refused, remembers, wrong
from qkverify.timing.sampling import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    OUT_OF_TIME,
    SHORT_SECONDS,
    Samples,
    SamplingPlan,
    Subject,
    Watch,
    calibrate,
    interleave,
    planned,
    too_slow,
)
from qkverify.timing.statistics import ALONE, paired, paired_ratio
from qkverify.timing.work import Work, work
from qkverify.timing.workloads import Workload

AGAIN = " (again)"
CALLS = 8  # of a cell: the first, two to warm up, the fewest rounds, and two more on the numbers of the check
FIRST_CALL_SECONDS = 1.0  # a call that takes longer took it for its work
TRIALS = 2  # of a cell: its first call, and the last
# Where the seeds of the numbers begin that outputs are judged on, in this process: no kernel can have computed them before.
FRESH = 1 + secrets.randbelow(2**31)
SAME_CALLS, PAIRS = 2, 4  # samples on the same numbers; turns in which a suspicion is tried again


@dataclass(frozen=True)
class Prepared:
    """A cell ready to run: `check` gives the margin of an output, None where it cannot be told, and may raise Refused.

    `renew` comes before so many calls, that each meets numbers of its own. `trial` puts new numbers in the place of the
    last call's: what it returns is called then, and `check` judges that output. `again` is the last call once more.
    `kept` are calls out of the middle of the timing, which are judged with the last one.
    """

    call: Call
    clock: Clock
    work: Work
    check: Callable[[Any], float | None]
    renew: Callable[[int], None] = lambda calls: None
    trial: Callable[[], Call] | None = None
    again: Call | None = None
    kept: KeptCalls | None = None


class MeasuredGroup(NamedTuple):
    """Timings in the order of the cells; the fastest cell again, where anything ran; the seconds of a call as
    the warm-up saw them, of cells that the budget had no room for too; how long all of it took, and its rounds."""

    timings: list[Timing]
    twin: Timing | None
    call_seconds: dict[BenchmarkCase, float]
    wall_seconds: float = 0.0
    sampling_seconds: float = 0.0
    conditions: Conditions | None = None

    @property
    def control(self) -> Control | None:
        """The A/A control: the fastest cell against its twin."""
        mine = [t for t in self.timings if self.twin and t.implementation == self.twin.implementation]
        return control_of(mine[0], self.twin) if self.twin and mine and mine[0].seconds else None


def measure(
    cells: Sequence[BenchmarkCase],
    *,
    budget_seconds: float,
    limit_seconds: float | None = None,
    verified: Mapping[BenchmarkCase, str | None] | None = None,
    peaks: Mapping[BenchmarkCase, int] | None = None,
    expected_seconds: Mapping[BenchmarkCase, float] | None = None,
    seed: int = 0,
    prepare: Callable[[BenchmarkCase], Prepared] | None = None,
    most_rounds: int = MOST_ROUNDS,
    check: bool = True,
    twin_of: str = "",
    cache: Cache | None = None,
    once: bool = False,
    stop_seconds: float | None = None,
    sampling_seconds: float | None = None,
) -> MeasuredGroup:
    """Time the cells of one group (one case, direction, device and dtype) against each other.

    The budget is what all of it should take, and `sampling_seconds` (by default all that is left of it) what the
    rounds should; where the fewest rounds need more, both may grow to the limit. A
    cell that cannot have the fewest rounds within its part of the limit is called once, and that call is
    timed and checked; with `once` every cell is. What is expected to be fast comes first. After
    `stop_seconds` (by default the limit) no further cell is begun, nor one of which a single call is expected
    to take longer. `verified` maps a cell to the reason why it must not be timed, or None; a cell that is not
    in it is tried. `peaks` are peak bytes, measured elsewhere. `prepare` makes a cell ready to run, and may
    raise UnsupportedCase. Without `check` the outputs are not compared with the reference: for cells of which
    this very call was checked before, and whose expected seconds are those that it took. The twin is that of the
    fastest cell, or of the named. `cache` as in `clocks.clock_for`.
    """
    start, limit = now(), budget_seconds if limit_seconds is None else limit_seconds
    given, reasons = prepare, dict(verified or {})
    ready, plans, singles = (
        dict[BenchmarkCase, Prepared](),
        dict[str, SamplingPlan](),
        dict[BenchmarkCase, Single](),
    )
    prepare = given or partial(prepared if check else _unchecked, cache=cache, seed=seed)
    expected, stop = expected_seconds or {}, limit if stop_seconds is None else stop_seconds
    waiting = [cell for cell in cells if reasons.get(cell) is None]
    waiting.sort(key=lambda cell: expected.get(cell, 0.0))
    for index, cell in enumerate(waiting):
        spent, seconds = now() - start, expected.get(cell, 0.0)
        if spent >= stop or seconds > stop - spent:
            reasons[cell] = too_slow(seconds) if spent < stop else OUT_OF_TIME
            continue
        allowance = max(0.0, limit - spent) / (len(waiting) - index)
        known = None if check else expected.get(cell)
        attempted = (
            _attempted(cell, prepare, 0.0 if once else allowance, check)
            if known is None
            else _resumed(cell, prepare, known)
        )
        if isinstance(attempted, str):
            reasons[cell] = attempted
        elif isinstance(attempted, Single):
            singles[cell] = attempted
        else:
            ready[cell], plans[cell.implementation.name] = attempted
    subjects = {cell.implementation.name: subject_of(subject) for cell, subject in ready.items()}
    calls = {cell: plans[cell.implementation.name].call_seconds for cell in ready}
    named = [cell for cell in calls if cell.implementation.name == twin_of]
    control = min(named or calls, key=lambda cell: calls[cell], default=None)
    if control is not None:
        _add_twin(control, prepare, subjects, plans)
    # a tenth more than the samples: for what passes between them
    need = 1.1 * FEWEST_ROUNDS * sum(plan.cost_seconds for plan in plans.values())
    spent = now() - start
    wanted = budget_seconds - spent
    if sampling_seconds is not None:
        wanted = min(wanted, sampling_seconds)
    rounds_seconds = max(wanted, min(need, limit - spent))
    watch = Watch(_monitor(cells[0].device) if cells else None)
    began = now()
    samples = interleave(
        subjects, budget_seconds=rounds_seconds, seed=seed, plans=plans, most_rounds=most_rounds, watch=watch
    )
    sampled_seconds = now() - began
    timings = [
        _timing(
            cell,
            ready.get(cell),
            samples,
            reasons.get(cell),
            (peaks or {}).get(cell),
            plans.get(cell.implementation.name) if check else None,
        )
        if cell not in singles
        else singles[cell].timing(cell, (peaks or {}).get(cell))
        for cell in cells
    ]
    timings = [_marked(timing, watch) for timing in timings]
    twin = None if control is None else _twin(control, timings, samples)
    conditions = _conditions(cells[0], watch) if ready else None
    return MeasuredGroup(
        timings,
        twin and _marked(twin, watch, twin.implementation + AGAIN),
        calls | {cell: single.seconds for cell, single in singles.items()},
        wall_seconds=now() - start,
        sampling_seconds=sampled_seconds,
        conditions=conditions,
    )


def prepared(cell: BenchmarkCase, *, seed: int = 0, cache: Cache | None = None) -> Prepared:
    """The cell itself: inputs native and in place, the clock of its device, the check by the reference."""
    run = run_of(cell.implementation, cell.device, cell.dtype)
    inputs = Inputs(run, problem_of(cell.workload, cell.dtype, 0), cell.direction)
    tried: list[tuple[FreshCall, int]] = []

    def trial() -> Call:
        drawn = (
            TRIALS * seed + len(tried) % TRIALS
        )  # other numbers for every trial, and for all cells of a group the same
        fresh = as_judged(run, fresh_problem(cell.workload, cell.dtype, cell.direction, drawn))
        tried_on = inputs.trial(fresh)
        # The very object that other runs are judged by, so that the reference computes it once; a backward pass by itself
        # has queries, keys and values of its own.
        problem = as_judged(run, tried_on.problem) if cell.direction == "backward" else fresh
        tried.append((replace(tried_on, problem=problem, before=as_judged(run, tried_on.before)), drawn))
        return tried_on.call

    def check(output: Any) -> float | None:
        last, drawn = tried[-1]
        how = AttentionCheck(run, cell.direction, drawn)
        return output_check.judged(how, last, output, inputs.call, inputs.lends)

    def spot(output: Any) -> Callable[[], float | None]:
        conventions = {name: run.semantics[name] for name in ("causal_alignment", "empty_rows")}
        problem = inputs.problem_of_last().replace(**conventions)
        AttentionCheck(run, cell.direction, 0).arrays(problem, output)
        return sampled_rows.spot_check(run, problem, output, cell.direction)

    return Prepared(
        inputs.call,
        _clock(cell.implementation.arrays, cell.device, cache),
        amount_of(cell),
        check,
        inputs.renew,
        trial,
        inputs.again,
        KeptCalls(spot),
    )


def _unchecked(cell: BenchmarkCase, *, seed: int = 0, cache: Cache | None = None) -> Prepared:
    """The cell without what only a check needs: its conventions need not be found out."""
    run = Run(cell.implementation, cell.device, cell.dtype)
    inputs = Inputs(run, problem_of(cell.workload, cell.dtype, 0), cell.direction)
    clock = _clock(cell.implementation.arrays, cell.device, cache)
    return Prepared(inputs.call, clock, amount_of(cell), lambda output: None, inputs.renew)


@lru_cache(maxsize=256)
def run_of(implementation: Implementation, device: str, dtype: str) -> Run:
    """The run of a cell, held to the conventions that it declares or shows."""
    choices = conventions.detect(implementation, device, dtype)
    return Run(
        implementation,
        device,
        dtype,
        conventions.settled(choices),
        **conventions.precisions_of(choices, dtype),
    )


@lru_cache(maxsize=1 + TRIALS)
def problem_of(workload: Workload, dtype: str, seed: int) -> Problem:
    """The problem that all cells of a group share."""
    return workload.problem(dtype, seed=seed)


@lru_cache(maxsize=TRIALS)
def fresh_problem(workload: Workload, dtype: str, direction: Direction, seed: int) -> Problem:
    """The numbers on which the outputs of a group are judged: none that was timed, and drawn anew for every seed."""
    problem = problem_of(workload, dtype, FRESH + seed)
    if workload.values != "normal":  # a model's own: each head gets those of another
        turned = {
            name: np.roll(getattr(problem, name), 1 + seed % TRIALS, axis=1)
            for name in ("query", "key", "value")
        }
        problem = problem.replace(**turned)
    return sampled_rows.judged(problem, direction, seed)


def as_judged(run: Run, problem: Problem) -> Problem:
    """The problem under a run's conventions; the same object for all whose conventions make no difference."""
    if problem.sizes["Q"] == problem.sizes["K"]:  # both alignments are one, and every row sees its own key
        return problem
    return judged_by(problem, run.semantics["causal_alignment"], run.semantics["empty_rows"])


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


def _marked(timing: Timing, watch: Watch, name: str = "") -> Timing:
    """The timing with the rounds in which it was disturbed; `name` is that of the subject, where it is another."""
    disturbed = watch.disturbed(name or timing.implementation)
    marks = [number for number in timing.rounds if number in disturbed]
    return msgspec.structs.replace(timing, disturbed=marks) if marks else timing


def _conditions(cell: BenchmarkCase, watch: Watch) -> Conditions | None:
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
        disturbed=watch.causes(),
        mhz_low=min(known("mhz"), default=None),
        mhz_high=max(known("mhz"), default=None),
        celsius=max(known("celsius"), default=None),
        watts=max(known("watts"), default=None),
        load=max(known("load"), default=None),
    )


class Single(NamedTuple):
    """A cell whose one call was timed and checked at once: `margin` and `reason` as of `checked`."""

    ready: Prepared
    seconds: float
    margin: float | None
    reason: str

    def timing(self, cell: BenchmarkCase, peak: int | None) -> Timing:
        taken = Samples(reason=self.reason) if self.reason else Samples([self.seconds], [ALONE])
        return msgspec.structs.replace(
            _timing(cell, self.ready, {cell.implementation.name: taken}, None, peak, None), margin=self.margin
        )


def _attempted(
    cell: BenchmarkCase, prepare: Callable[[BenchmarkCase], Prepared], allowance_seconds: float, check: bool
) -> tuple[Prepared, SamplingPlan] | Single | str:
    """The cell made ready, called once and warmed up, or why that failed. Where the allowance has no room for all the calls
    of a cell, the first was the only one."""
    try:
        ready = prepare(cell)
        if replaced := restore_clocks():
            return replaced
        if cell.implementation.compiles or cell.device != "cpu":
            ready.call()  # what is compiled or loaded once is not part of a time
        outputs: list[Any] = []
        call = ready.trial() if ready.trial is not None else ready.call
        seconds = ready.clock.sample(lambda: outputs.append(call()))
        if SHORT_SECONDS < seconds < FIRST_CALL_SECONDS and seconds * CALLS > allowance_seconds > 0:
            seconds = min(seconds, ready.clock.sample(ready.call))  # a first call loads and allocates
        if replaced := restore_clocks():
            return replaced
        if seconds > SHORT_SECONDS and seconds * CALLS > allowance_seconds:
            return Single(ready, seconds, *(_judged(ready, outputs.pop()) if check else (None, "")))
        outputs.clear()
        if seconds > SHORT_SECONDS:  # warm for most of its time
            return ready, planned(ready.clock, seconds)
        return ready, calibrate(subject_of(ready), limit_seconds=allowance_seconds)
    except (UnsupportedCase, NotImplementedError) as refusal:
        return f"not offered: {first_line(refusal)}"
    except Exception as error:  # the cell's own failure: recorded, and the others go on
        return raised(error)


def _resumed(
    cell: BenchmarkCase, prepare: Callable[[BenchmarkCase], Prepared], call_seconds: float
) -> tuple[Prepared, SamplingPlan] | str:
    """The cell made ready and called once, its plan by what another process saw; or why that failed."""
    try:
        ready = prepare(cell)
        ready.call()
        if replaced := restore_clocks():
            return replaced
        return ready, planned(ready.clock, call_seconds)
    except (UnsupportedCase, NotImplementedError) as refusal:
        return f"not offered: {first_line(refusal)}"
    except Exception as error:
        return raised(error)


def _add_twin(
    cell: BenchmarkCase,
    prepare: Callable[[BenchmarkCase], Prepared],
    subjects: dict[str, Subject],
    plans: dict[str, SamplingPlan],
) -> None:
    """The cell once more, ready for itself; where memory has no room for it, there is no control."""
    name = cell.implementation.name
    try:
        twin = prepare(cell)
        twin.call()
    except Exception:  # the cell itself was called before: this is not its failure, and the others go on
        return
    subjects[name + AGAIN], plans[name + AGAIN] = subject_of(replace(twin, kept=None)), plans[name]


def _twin(cell: BenchmarkCase, timings: Sequence[Timing], samples: Mapping[str, Samples]) -> Timing | None:
    """The record of the second half of the A/A control; it is not among the timings."""
    taken = samples.get(cell.implementation.name + AGAIN, Samples())
    mine = next(t for t in timings if t.implementation == cell.implementation.name)
    return (
        msgspec.structs.replace(mine, seconds=taken.seconds, rounds=taken.rounds, disturbed=[])
        if taken.seconds
        else None
    )


def _timing(
    cell: BenchmarkCase,
    ready: Prepared | None,
    samples: Mapping[str, Samples],
    reason: str | None,
    peak: int | None,
    plan: SamplingPlan | None,
) -> Timing:
    """The record of one cell; with the plan that it was sampled by, its output is checked."""
    taken = samples.get(cell.implementation.name, Samples(reason=reason or ""))
    margin = None
    if plan is not None and ready is not None and taken.seconds:
        margin, unverified = checked(ready, taken.seconds, plan.repeats)
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


def unmeasured(cell: BenchmarkCase, reason: str) -> Timing:
    """The record of a cell that was not timed, and why."""
    return _timing(cell, None, {}, reason, None, None)


def refused(timing: Timing, reason: str) -> Timing:
    """The record of a cell whose times do not count."""
    return msgspec.structs.replace(
        timing, seconds=[], rounds=[], processes=[], disturbed=[], verified=False, reason=reason
    )


def amount_of(cell: BenchmarkCase) -> Work:
    """The work of a cell that was never made ready."""
    return work(cell.workload.outline(cell.dtype), cell.direction)


def checked(ready: Prepared, seconds: Sequence[float] = (), repeats: int = 1) -> tuple[float | None, str]:
    """The margin of the call on new numbers, and why the times do not count; "" where they do.

    `seconds` are the samples that were taken, each of `repeats` calls on new numbers.
    """
    try:
        call = ready.trial() if ready.trial is not None else ready.call
        outputs: list[Any] = []
        ready.clock.sample(lambda: outputs.append(call()))
        margin, why = _judged(ready, outputs.pop())
        if not why and ready.kept is not None:
            why = ready.kept.why_wrong()
        if not why and ready.trial is not None:
            why = _memory(ready, call, seconds, repeats)
        return margin, restore_clocks() or why
    except Exception as error:
        return None, raised(error)


def _judged(ready: Prepared, output: Any) -> tuple[float | None, str]:
    """The margin of an output, and why it is not right; "" where it is."""
    try:
        margin = ready.check(output)
    except Refused as refused:
        return None, str(refused)
    if margin is None:
        return None, "its output cannot be checked at this size"
    if margin <= 1:
        return margin, ""
    return margin, wrong(margin)


def _memory(ready: Prepared, call: Call, seconds: Sequence[float], repeats: int) -> str:
    """What speaks for it that the call remembers, "" for nothing.

    A suspicion is tried again in turns, by what the process computed: a machine that others use too may have become faster
    in between, and hold back any sample.
    """
    if not seconds or ready.again is None:
        return ""
    for _ in range(SAME_CALLS):
        if remembers([ready.clock.sample(call, repeats)], seconds):
            break
    else:
        return ""
    spent = _computed if ready.clock.name == "host" else ready.clock.sample
    ready.renew(WINDOWS)
    new, again = [], []
    for _ in range(1 + PAIRS):
        new.append(spent(ready.call))
        again.append(spent(ready.again))
    return remembers(again[1:], new[1:])  # the first of them came after the numbers had moved


def _computed(call: Call) -> float:
    """Seconds that all threads of this process computed in one call."""
    start = process_time()
    call()
    return process_time() - start


def subject_of(ready: Prepared) -> Subject:
    """What is sampled of it."""
    return Subject(ready.call, ready.clock, ready.renew, None if ready.kept is None else ready.kept.keep)


def control_of(timing: Timing, again: Timing, scatter: Scatter | None = None) -> Control | None:
    """The ratio of a cell to itself, over the rounds in which both halves ran; None where too few did. `scatter` is what all
    cases of the run say."""
    mine, other, processes = paired(timing, again)
    interval = paired_ratio(mine, other, processes, scatter=scatter)
    if not all(math.isfinite(number) for number in interval):
        return None  # too few rounds to say anything of the noise, and JSON has no infinity
    count = len(set(processes))
    return Control(
        timing.case,
        timing.implementation,
        timing.device,
        timing.dtype,
        *interval,
        direction=timing.direction,
        processes=count,
        scatter=scatter,
    )
