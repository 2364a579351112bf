"""Everything at once: verify and time all that runs here, and keep it in one results file."""

from __future__ import annotations

import datetime
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

import qkverify
from qkverify import probes
from qkverify.cli import console, console_progress
from qkverify.contract import Implementation, frameworks
from qkverify.counterexamples.failures import Failures
from qkverify.errors import UsageError, raised
from qkverify.history import earlier_runs
from qkverify.probes import precision
from qkverify.report import pictures
from qkverify.results import (
    Accuracy,
    Complexity,
    ImplementationInfo,
    Picture,
    Record,
    Rounding,
    RunStart,
    Verdict,
    Writer,
    of_kind,
    read,
)
from qkverify.results.fingerprint import cores, fingerprint
from qkverify.results.one_run import alone_in
from qkverify.timing import complexity, operation_times
from qkverify.timing.grid import run_grid
from qkverify.verification import accuracy, processes
from qkverify.verification.checking import (
    Address,
    Cell,
    VerificationPlan,
    address_of,
    applicable,
    cell_at,
    check_parts,
    conventions_of,
    explained_together,
    info,
    law_book,
    plan,
)
from qkverify.verification.laws import Law

OPERATIONS_SHARE = 0.1  # likewise: seconds for the times of other operations
COMPLEXITY_SHARE = 0.1  # of the budget, and on top of it: seconds for how the cost of layers grows


def best_device() -> str:
    """The device that a report on this machine is named after: the GPU where there is one."""
    if frameworks.missing("torch") is None and frameworks.get("torch").unavailable("cuda") is None:
        return "cuda"
    return "cpu"


def run_start(profile: str, selection: str = "", against: str = "") -> RunStart:
    """The header of a run that begins now."""
    command = shlex.join(["qkverify", *sys.argv[1:]])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return RunStart(
        qkverify=qkverify.__version__,
        started=now,
        command=command,
        profile=profile,
        fingerprint=fingerprint(),
        selection=selection,
        against=against,
    )


def record_everything(
    path: Path,
    *,
    profile: str,
    budget_seconds: float,
    devices: Sequence[str] = (),
    resume: bool = False,
    targets: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    against: str = "",
) -> None:
    """Write a results file: header, verdicts as they come, accuracy, how products round, implementations, then timings.

    With `targets` (default: all implementations) it is about them alone: without the pictures and the growth of layers, which
    have nothing to do with them. `against` is the name of what they are compared with, one of them; its dtypes are theirs.

    With `resume` a file that a killed run left behind is gone on with: laws that have a verdict in it are not checked again.
    Otherwise, and where the file is that of a finished run or of other software, a new file begins, and what trends need of the
    one before is kept: see `history`.
    Raises UsageError where nothing of `devices` is to be had here.
    """
    planned = plan(targets, devices, dtypes or _dtypes_beside(targets, against))
    if not planned.cells:
        reasons = sorted(set(planned.unavailable.values()))
        raise UsageError(
            f"nothing to verify on {', '.join(devices) or 'this machine'}: {'; '.join(reasons) or 'no implementation runs there'}"
        )
    growth = COMPLEXITY_SHARE * budget_seconds
    console.console.print(
        f"all laws first ({profile}), then {budget_seconds:g} s of times and {growth:g} s of how they grow"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(path.parent, path):
        _record(path, planned, profile=profile, budget_seconds=budget_seconds, devices=devices, resume=resume,
                targets=targets, against=against)  # fmt: skip


def _record(path: Path, planned: VerificationPlan, *, profile: str, budget_seconds: float, devices: Sequence[str], resume: bool,
            targets: Sequence[str], against: str) -> None:  # fmt: skip
    verdicts = recorded(path, profile) if resume else []
    known: list[Record] = list(read(path)) if verdicts else []
    if not verdicts:
        earlier_runs.archive(path)
        path.unlink(missing_ok=True)
    writer = Once(path, known)
    writer.append(run_start(profile, against=against))
    verdicts += verify(writer, unfinished(planned.cells, verdicts), profile)
    alive = harmless(planned.implementations, verdicts)
    attention = [cell for cell in planned.cells if cell.implementation.operation == "attention"]
    measured_cells = {(a.implementation, a.device, a.dtype) for a in of_kind(known, Accuracy)}
    unmeasured = [cell for cell in attention if cell.implementation in alive
                  and (cell.implementation.name, cell.device, cell.dtype) not in measured_cells]  # fmt: skip
    for measured in accuracies(unmeasured):
        writer.append(measured)
    for device in dict.fromkeys(cell.device for cell in planned.cells):
        for rounding in precision.records(device):
            writer.append(rounding)
    for (name, device), reason in planned.unavailable.items():
        verdicts += _unavailable(writer, name, device, reason, planned)
    for implementation in planned.implementations:
        writer.append(_described(implementation, planned))
    for picture in () if targets else pictures.measure(planned.cells):
        writer.append(picture)
    timed = tuple(dict.fromkeys(cell.dtype for cell in planned.cells)) if targets else ()
    with console_progress.progress("timing") as advance:
        run_grid(writer, alive, budget_seconds=budget_seconds, progress=advance, verdicts=verdicts,
                 devices=devices, dtypes=timed)  # fmt: skip
    if targets:
        return
    with console_progress.progress("other operations") as advance:
        for timing in operation_times.measure(alive, budget_seconds=OPERATIONS_SHARE * budget_seconds,
                                              devices=devices, progress=advance):  # fmt: skip
            writer.append(timing)
    with console_progress.progress("growth") as advance:
        for grown in complexity.measure(COMPLEXITY_SHARE * budget_seconds, devices=devices, progress=advance):
            writer.append(grown)


class Once(Writer):
    """A writer that leaves out what the file of an interrupted run says already: what is no law, and no time."""

    def __init__(self, path: Path, known: Sequence[Record]) -> None:
        super().__init__(path)
        self._known = {fact for record in known if (fact := _fact(record)) is not None}

    def append(self, record: Record) -> None:
        fact = _fact(record)
        if fact is None or fact not in self._known:
            super().append(record)


def _fact(record: Record) -> tuple[str, ...] | None:
    """What a record is about, if a run says it once."""
    if isinstance(record, Verdict) and record.outcome == "unavailable":
        return "unavailable", record.implementation, record.device, record.dtype, record.law
    if isinstance(record, Accuracy):
        return "accuracy", record.implementation, record.device, record.dtype
    if isinstance(record, Rounding):
        return "rounding", record.unit, record.device
    if isinstance(record, ImplementationInfo):
        return "implementation", record.name
    return ("picture", record.group, record.name) if isinstance(record, Picture) else None


def _dtypes_beside(targets: Sequence[str], against: str) -> tuple[str, ...]:
    """The dtypes of what is reported on: what it is compared with is verified in no others. Empty without a baseline."""
    every = [implementation for target in targets for implementation in probes.find(target)]
    return (
        tuple(
            dict.fromkeys(
                d for implementation in every if implementation.name != against for d in implementation.dtypes
            )
        )
        if against
        else ()
    )


def recorded(path: Path, profile: str) -> list[Verdict]:
    """The verdicts of a run that can be gone on with; none where there is no such file. A line that was torn is left out of the
    file from now on."""
    if not path.is_file():
        return []
    reading = read(path, strict=False)
    why = why_not_gone_on_with(reading.records, profile)
    if why:
        console.console.print(f"starting a new run, because the run in {path} {why}", markup=False)
        return []
    if reading.problems:
        path.unlink()
        with Writer(path) as writer:
            for record in reading.records:
                writer.append(record)
    return of_kind(reading.records, Verdict)


DECISIVE = (
    "gpu",
    "commit",
    "numpy",
    "torch",
    "triton",
)  # facts on which verdicts depend; the folder says which processor


def why_not_gone_on_with(records: Sequence[Record], profile: str) -> str:
    """Why a run that began now must not take over the verdicts of a file, or ""."""
    starts = of_kind(records, RunStart)
    if not starts:
        return "has no header"
    if starts[-1].profile != profile:
        return f"was checked at profile {starts[-1].profile}"
    then, now = starts[-1].fingerprint.identity, fingerprint().identity
    other = [f"{fact} {then.get(fact)}, here {now[fact]}" for fact in DECISIVE if then.get(fact) != now[fact]]
    if other:
        return f"was made with {'; '.join(other)}"
    last = complexity.series()[-1]
    grown = {(growth.layer, growth.variable) for growth in of_kind(records, Complexity)}
    return "is finished" if (last.layer.name, last.variable) in grown else ""


def unfinished(cells: Sequence[Cell], verdicts: Sequence[Verdict]) -> dict[Cell, list[Law]]:
    """The laws without a verdict, of each cell that has such."""
    known = {(v.implementation, v.device, v.dtype, v.law) for v in verdicts if v.outcome != "unavailable"}
    lacking = {
        cell: [
            law
            for law in applicable(law_book(), cell)
            if (cell.implementation.name, cell.device, cell.dtype, law.name) not in known
        ]
        for cell in cells
    }
    return {cell: laws for cell, laws in lacking.items() if laws}


def verify(
    writer: Writer, laws: Mapping[Cell, Sequence[Law]], profile: str, *, budget_seconds: float = math.inf
) -> list[Verdict]:
    """The verdicts of these laws, those that the budget had room for. Each is written as it comes, but for what failed: that
    waits for the other failures of its cell, with which it is explained."""
    verdicts: list[Verdict] = []
    total, start, checked = sum(map(len, laws.values())), time.monotonic(), 0
    calls = {cell: Failures() for cell in laws}
    failed: dict[Cell, list[Verdict]] = {cell: [] for cell in laws}
    left = {cell: len(of_cell) for cell, of_cell in laws.items()}
    parts = check_parts(
        laws, profile=profile, jobs=max(2, cores()), until=start + budget_seconds, calls=calls
    )

    def keep(some: Iterable[Verdict]) -> None:
        for verdict in some:
            verdicts.append(verdict)
            writer.append(elsewhere(verdict))

    with console_progress.progress("verifying") as advance:
        for cell, of_part in parts:
            checked += len(of_part)
            advance(checked / total, str(cell))
            failed[cell] += [v for v in of_part if v.outcome == "failed"]
            keep(v for v in of_part if v.outcome != "failed")
            left[cell] -= len(of_part)
            if not left[cell]:
                keep(explained_together(cell, failed.pop(cell), calls[cell]))
        for cell, of_cell in failed.items():  # cells that the budget cut short
            keep(explained_together(cell, of_cell, calls[cell]))
    return verdicts


def harmless(implementations: Sequence[Implementation], verdicts: Sequence[Verdict]) -> list[Implementation]:
    """Those whose calls did not end or block a process while laws were checked; the others are not called again, and named."""
    ends = {v.implementation: v.reason for v in verdicts if v.outcome in ("crashed", "timed out")}
    for implementation in implementations:
        if reason := ends.get(implementation.name):
            console.console.print(f"not called again: {implementation.name}: {reason}", markup=False)
    return [implementation for implementation in implementations if implementation.name not in ends]


def elsewhere(verdict: Verdict) -> Verdict:
    """A verdict as another machine reads it: the file that its script loads is named from where the run was started."""
    counterexample = verdict.counterexample
    if counterexample is None or not counterexample.script:
        return verdict
    script = counterexample.script.replace(f'"{Path.cwd()}{os.sep}', '"')
    return msgspec.structs.replace(
        verdict, counterexample=msgspec.structs.replace(counterexample, script=script)
    )


def accuracies(cells: Sequence[Cell]) -> Iterator[Accuracy]:
    """The accuracy of each cell, in processes of their own: what raises or dies there, which the laws report, costs only that."""
    addresses = [(address_of(cell),) for cell in cells]
    for index, accuracy_or_reason in processes.each(_accuracy, addresses, max(2, cores())):
        if isinstance(accuracy_or_reason, Accuracy):
            yield accuracy_or_reason
        elif accuracy_or_reason != UNKNOWABLE:
            said = accuracy_or_reason or "its process died"
            console.console.print(f"the accuracy of {cells[index]} was not measured: {said}", markup=False)


UNKNOWABLE = "there is nothing to measure"


def _accuracy(address: Address) -> Accuracy | str:
    try:
        return accuracy.measure(cell_at(address)) or UNKNOWABLE
    except Exception as error:
        return raised(error)


def _described(implementation: Implementation, planned: VerificationPlan) -> ImplementationInfo:
    """What the report says of an implementation; its conventions are those of its bfloat16 cell, where it has one."""
    cells = [cell for cell in planned.cells if cell.implementation is implementation]
    choices = conventions_of(next((c for c in cells if c.dtype == "bfloat16"), cells[0])) if cells else {}
    return info(
        implementation,
        choices,
        {
            device: reason
            for (name, device), reason in planned.unavailable.items()
            if name == implementation.name
        },
    )


def _unavailable(
    writer: Writer, name: str, device: str, reason: str, planned: VerificationPlan
) -> list[Verdict]:
    """One verdict for each family of laws: the report says why a cell is empty."""
    implementation = next(
        (planned_one for planned_one in planned.implementations if planned_one.name == name), None
    )
    rows = []
    for dtype in implementation.dtypes if implementation else ("",):
        families = {
            law.family: law
            for law in law_book()
            if implementation is None or implementation.operation in law.operations
        }
        for law in families.values():
            rows.append(Verdict(law=law.name, family=law.family, sentence=law.sentence, exact=law.exact, implementation=name,
                                device=device, dtype=dtype, outcome="unavailable", reason=reason))  # fmt: skip
    for row in rows:
        writer.append(row)
    return rows
