"""Operations other than attention, timed: every implementation of one against the others, on the sizes of `operation_sizes`.

    for timing in measure(implementations, budget_seconds=15): writer.append(timing)

As for attention: implementations take turns round by round, every call finds other numbers at another place, and a time counts
only if the result is within its bound, on numbers that the call had not seen, written where it had just read others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from qkverify.contract import DEVICES, Implementation, registry
from qkverify.contract.operations import DESCRIBED
from qkverify.errors import raised
from qkverify.results import OperationTiming
from qkverify.rounding import EXACT, Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OPERATION_SPECS, OperationCall, PreparedCall, Source
from qkverify.timing.clocks import Clock, clock_for
from qkverify.timing.measurement import run_of
from qkverify.timing.operation_sizes import OPERATION_CASES, OperationCase
from qkverify.timing.sampled_rows import margin
from qkverify.timing.sampling import Samples, SamplingPlan, Subject, calibrate, interleave

COPIES = 3  # calls on numbers of their own, which take turns
DTYPE = "float32"
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Prepared:
    """One implementation, ready to be timed: `calls` take turns, `check` is the margin of the last one on new numbers."""

    subject: Subject
    clock: Clock
    check: Callable[[], float]


def measure(
    implementations: Sequence[Implementation],
    *,
    budget_seconds: float,
    devices: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[OperationTiming]:
    """A record for every implementation of an operation, on each device and each of the operation's two sizes.

    The budget is for warming up and sampling, shared equally; what one group leaves goes to those after it. Making the inputs
    ready and checking the results comes on top.
    """
    groups = [
        (case, device, rivals)
        for device in (devices or DEVICES)
        for operation, cases in OPERATION_CASES.items()
        if (rivals := _rivals(implementations, operation, device))
        for case in cases
    ]
    start = time.perf_counter()
    for number, (case, device, rivals) in enumerate(groups):
        if progress is not None:
            progress(number / len(groups), f"{case.operation} {case.name}")
        left = (budget_seconds - (time.perf_counter() - start)) / (len(groups) - number)
        yield from _timed_together(case, device, rivals, max(left, 0.0), seed)


def _rivals(implementations: Sequence[Implementation], operation: str, device: str) -> list[Implementation]:
    return [
        implementation
        for implementation in implementations
        if implementation.operation == operation
        and DTYPE in implementation.dtypes
        and registry.devices_of(implementation, (device,)).get(device, "not declared") is None
    ]


def _timed_together(
    case: OperationCase, device: str, rivals: Sequence[Implementation], budget_seconds: float, seed: int
) -> Iterator[OperationTiming]:
    start, ready, plans, reasons = (
        time.perf_counter(),
        dict[str, Prepared](),
        dict[str, SamplingPlan](),
        dict[str, str](),
    )
    for rival in rivals:
        try:
            prepared = _prepared(case, run_of(rival, device, DTYPE), seed)
            plans[rival.name] = calibrate(prepared.subject, limit_seconds=budget_seconds)
            ready[rival.name] = prepared
        except Exception as error:  # the implementation's own: recorded, and the others are timed
            reasons[rival.name] = raised(error)
    subjects = {name: prepared.subject for name, prepared in ready.items()}
    left = max(0.0, budget_seconds - (time.perf_counter() - start))
    samples = interleave(subjects, budget_seconds=left, seed=seed, plans=plans)
    for rival in rivals:
        yield _record(case, device, rival.name, ready.get(rival.name), samples, reasons.get(rival.name, ""))


def _record(
    case: OperationCase,
    device: str,
    name: str,
    prepared: Prepared | None,
    samples: dict[str, Samples],
    reason: str,
) -> OperationTiming:
    taken, worst = samples.get(name, Samples(reason=reason)), None
    reason = reason or taken.reason
    if prepared is not None and not reason:
        try:
            worst = prepared.check()
            reason = (
                ""
                if worst <= 1
                else f"the timed call's result is wrong: {worst:.3g} times its bound away from the reference"
            )
        except Exception as error:
            reason = raised(error)
    return OperationTiming(
        operation=case.operation, case=case.name, sizes=dict(case.shown), implementation=name, device=device, dtype=DTYPE,
        seconds=[] if reason else taken.seconds, rounds=[] if reason else taken.rounds, margin=worst, reason=reason,
        clock=prepared.clock.name if prepared is not None else "host",
    )  # fmt: skip


def _prepared(case: OperationCase, run: Run, seed: int) -> Prepared:
    calls = [PreparedCall(run, _call(case, run, seed, turn)) for turn in range(COPIES)]
    functions = [run.function_call(tuple(call.arguments.values()), call.options) for call in calls]
    turn = {"last": -1}

    def call() -> Any:
        turn["last"] = (turn["last"] + 1) % COPIES
        return functions[turn["last"]]()

    framework = run.framework
    clock = clock_for(run.implementation.arrays, run.device, framework.synchronise)
    return Prepared(
        Subject(call, clock),
        clock,
        lambda: _margin(case, run, calls[turn["last"]], functions[turn["last"]], seed),
    )


def _call(case: OperationCase, run: Run, seed: int, turn: int) -> OperationCall:
    """The case as a call of one implementation; in another `turn` of the same sizes, with other numbers.

    Keywords that the function does not take are left out; the reference is told what it means without them.
    """
    sizes = SimpleNamespace(**{**case.sizes, "seed": seed})
    arguments, options = case.draw(sizes, Source(np.dtype(run.numpy_dtype), sizes, turn))
    described = DESCRIBED[case.operation].options
    missing = [
        name for name in options if described.get(name) == "required" and not run.offers_parameter(name)
    ]
    kept = {name: x for name, x in options.items() if name not in missing}
    return OperationCall(OPERATION_SPECS[case.operation], arguments, run.given(**kept))


def _margin(
    case: OperationCase, run: Run, timed: PreparedCall, function: Callable[[], Any], seed: int
) -> float:
    """The margin of the very call that was timed, after other numbers were written where it read those before.

    Frameworks whose arrays cannot be written get a call on new ones.
    """
    fresh = _call(case, run, seed, COPIES)
    if run.framework.WRITABLE:
        for name, array in fresh.arrays.items():
            run.framework.overwrite(timed.native[name], array)
        returned = function()
    else:
        renewed = PreparedCall(run, fresh)
        returned = run.function_call(tuple(renewed.arguments.values()), renewed.options)()
    exact = fresh.exact(run)
    parts = returned if isinstance(returned, tuple) else (returned,)
    arrays = run.parts(parts[: len(exact)], [part.value.shape for part in exact])
    bounds = (run.within(array, part).errors for array, part in zip(arrays, exact, strict=True))
    judged = (Bounded(part.value, bound, EXACT) for part, bound in zip(exact, bounds, strict=True))
    return max(margin(array, part) for array, part in zip(arrays, judged, strict=True))
