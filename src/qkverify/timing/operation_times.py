"""Operations other than attention, timed: every implementation of one against the others, on the sizes of `operation_sizes`.

    for timing in measure(implementations, budget_seconds=15): writer.append(timing)

As for attention: implementations take turns round by round, every call finds other numbers at another place, and a time counts
only if the result is within its bound, of the last call and of some in the middle, and nothing speaks for memory
(`operation_check`, `output_check`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np

from qkverify.contract import DEVICES, Implementation, registry
from qkverify.errors import raised
from qkverify.results import OperationTiming
from qkverify.rounding import Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OperationCall
from qkverify.strategies.operation_spec import Source
from qkverify.strategies.operations import OPERATION_SPECS
from qkverify.timing import output_check
from qkverify.timing.clocks import Call, clock_for, now
from qkverify.timing.fresh_inputs import FreshCall
from qkverify.timing.kept_calls import KeptCalls
from qkverify.timing.measurement import Prepared, checked, run_of, subject_of
from qkverify.timing.operation_case import OperationCase
from qkverify.timing.operation_check import OperationCheck, OperationInputs, thinned
from qkverify.timing.operation_sizes import OPERATION_CASES
from qkverify.timing.sampling import Samples, SamplingPlan, calibrate, interleave
from qkverify.timing.work import Work

DTYPE = "float32"
Progress = Callable[[float, str], None]


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
    start = now()
    for number, (case, device, rivals) in enumerate(groups):
        if progress is not None:
            progress(number / len(groups), f"{case.operation} {case.name}")
        left = (budget_seconds - (now() - start)) / (len(groups) - number)
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
        now(),
        dict[str, Prepared](),
        dict[str, SamplingPlan](),
        dict[str, str](),
    )
    known = Known()
    for rival in rivals:
        try:
            prepared = _prepared(case, run_of(rival, device, DTYPE), seed, known)
            plans[rival.name] = calibrate(subject_of(prepared), limit_seconds=budget_seconds)
            ready[rival.name] = prepared
        except Exception as error:  # the implementation's own: recorded, and the others are timed
            reasons[rival.name] = raised(error)
    subjects = {name: subject_of(prepared) for name, prepared in ready.items()}
    left = max(0.0, budget_seconds - (now() - start))
    samples = interleave(subjects, budget_seconds=left, seed=seed, plans=plans)
    for rival in rivals:
        taken = samples.get(rival.name, Samples(reason=reasons.get(rival.name, "")))
        repeats = plans[rival.name].repeats if rival.name in plans else 1
        yield _record(case, device, rival.name, ready.get(rival.name), taken, repeats)


def _record(
    case: OperationCase,
    device: str,
    name: str,
    prepared: Prepared | None,
    taken: Samples,
    repeats: int,
) -> OperationTiming:
    margin, reason = None, taken.reason
    if prepared is not None and not reason:
        margin, reason = checked(prepared, taken.seconds, repeats)
    return OperationTiming(
        operation=case.operation, case=case.name, sizes=dict(case.shown), implementation=name, device=device, dtype=DTYPE,
        seconds=[] if reason else taken.seconds, rounds=[] if reason else taken.rounds, margin=margin, reason=reason,
        clock=prepared.clock.name if prepared is not None else "host",
    )  # fmt: skip


def _prepared(case: OperationCase, run: Run, seed: int, known: Known) -> Prepared:
    """`known` is what the reference said in trials of this case: all who are judged alike get the same numbers there."""
    form = OPERATION_SPECS[case.operation]
    inputs = OperationInputs(run, _drawn(case, run, seed))
    tried: list[FreshCall] = []

    def trial() -> Call:
        seed = known.seed + len(tried)
        tried.append(inputs.trial(thinned(case.operation, _drawn(case, run, seed), seed)))
        return tried[-1].call

    def exact(call: OperationCall) -> tuple[Bounded, ...]:
        number = next((n for n, trial in enumerate(tried) if trial.problem is call), None)
        return call.exact(run) if number is None else known.exact(run, call, number)

    check = OperationCheck(run, form, exact)
    return Prepared(
        inputs.call,
        clock_for(run.implementation.arrays, run.device, run.framework.synchronise),
        Work(0, 0),  # that of attention alone is counted
        lambda output: output_check.judged(check, tried[-1], output, inputs.call, inputs.lends),
        inputs.renew,
        trial,
        inputs.again if inputs.has_arrays else None,
        KeptCalls(lambda output: check.kept(inputs, output), most=1),  # the whole result is compared
    )


class Known:
    """What the reference said of one case, in this process alone: `seed` cannot be known before."""

    def __init__(self) -> None:
        self.seed = secrets.randbits(32)
        self._exact: dict[object, tuple[Bounded, ...]] = {}

    def exact(self, run: Run, call: OperationCall, number: int) -> tuple[Bounded, ...]:
        """What call `number` should return; computed once for all runs that are judged alike and take the same keywords."""
        key = number, run.precision, tuple(sorted(run.semantics.items())), tuple(call.options)
        if key not in self._exact:
            self._exact[key] = call.exact(run)
        return self._exact[key]


def _drawn(case: OperationCase, run: Run, seed: int) -> OperationCall:
    """The case as a call of one implementation, with the numbers of a seed.

    Keywords that the function does not take are left out; the reference is told what it means without them.
    """
    sizes = SimpleNamespace(**{**case.sizes, "seed": seed})
    arguments, options = case.draw(sizes, Source(np.dtype(run.numpy_dtype), sizes, 0))
    return OperationCall(OPERATION_SPECS[case.operation], arguments, run.given(**options))
