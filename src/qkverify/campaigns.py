"""Everything at once: verify all that runs here, time what passed, and keep it in one results file."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from pathlib import Path

import qkverify
from qkverify import accuracy, frameworks, screen
from qkverify.fingerprint import fingerprint
from qkverify.results import RunStart, Verdict, Writer
from qkverify.timing import run_grid
from qkverify.verification import check_cells, conventions_of, info, law_book, plan


def best_device() -> str:
    """The device that a report on this machine is named after: the GPU where there is one."""
    if frameworks.missing("torch") is None and frameworks.get("torch").unavailable("cuda") is None:
        return "cuda"
    return "cpu"


def run_start(profile: str) -> RunStart:
    """The header of a run that begins now."""
    command = shlex.join(["qkverify", *sys.argv[1:]])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return RunStart(
        qkverify=qkverify.__version__,
        started=now,
        command=command,
        profile=profile,
        fingerprint=fingerprint(),
    )


def record_everything(path: Path, *, profile: str, budget_seconds: float) -> None:
    """Write a new results file: header, implementations, verdicts as they come, then the timings of what passed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    writer = Writer(path)
    writer.append(run_start(profile))
    planned = plan()
    verdicts: list[Verdict] = []
    jobs = max(2, os.cpu_count() or 2)
    with screen.progress("verifying") as advance:
        for done, (cell, found) in enumerate(check_cells(planned.cells, profile=profile, jobs=jobs)):
            advance((done + 1) / len(planned.cells), str(cell))
            verdicts += found
            for verdict in found:
                writer.append(verdict)
    for cell in planned.cells:
        found_errors = accuracy.measure(cell) if cell.implementation.operation == "attention" else None
        if found_errors is not None:
            writer.append(found_errors)
    for (name, device), reason in planned.unavailable.items():
        verdicts += _unavailable(writer, name, device, reason, planned)
    for one in planned.implementations:
        cells = [cell for cell in planned.cells if cell.implementation is one]
        semantics = (
            conventions_of(next((c for c in cells if c.dtype == "bfloat16"), cells[0])) if cells else {}
        )
        gone = {device: reason for (name, device), reason in planned.unavailable.items() if name == one.name}
        writer.append(info(one, semantics, gone))
    with screen.progress("timing") as advance:
        run_grid(
            writer,
            planned.implementations,
            budget_seconds=budget_seconds,
            progress=advance,
            verdicts=verdicts,
        )


def _unavailable(writer: Writer, name: str, device: str, reason: str, planned: object) -> list[Verdict]:
    """One verdict for each family of laws: the report says why a cell is empty."""
    one = next((one for one in getattr(planned, "implementations", []) if one.name == name), None)
    rows = []
    for dtype in one.dtypes if one else ("",):
        families = {law.family: law for law in law_book() if one is None or law.operation == one.operation}
        for law in families.values():
            rows.append(Verdict(law=law.name, family=law.family, sentence=law.sentence, exact=law.exact, implementation=name,
                                device=device, dtype=dtype, outcome="unavailable", reason=reason))  # fmt: skip
    for row in rows:
        writer.append(row)
    return rows
