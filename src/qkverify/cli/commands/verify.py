"""`qkverify verify`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from qkverify.cli.adapter_options import adaptable, with_adapters
from qkverify.cli.app import app
from qkverify.cli.options import (
    EXAMPLES,
    CallTimeout,
    Devices,
    Dtypes,
    InProcess,
    JobsOfCells,
    KnownFailures,
    LawFiles,
    LawNames,
    Memory,
    RequiredPrecision,
    SkippedLaws,
)
from qkverify.cli.results_header import started


@app.command()
@adaptable
def verify(
    targets: Annotated[list[str] | None, typer.Argument(metavar="TARGET", help=(
        "a name, module:function or path/file.py:function; default: the targets of [tool.qkverify] in pyproject.toml"))] = None,
    dtype: Dtypes = None, device: Devices = None,
    profile: Annotated[str | None, typer.Option(metavar="PROFILE", help=f"{EXAMPLES}; default: default")] = None,
    jobs: JobsOfCells = None,
    law: LawNames = None, skip: SkippedLaws = None, own_laws: LawFiles = None, known_failures: KnownFailures = None,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="append the verdicts to this file, as JSON lines")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="write the verdicts to this file, as JUnit XML")] = None,
    strict: Annotated[bool, typer.Option("--strict", help=(
        "for CI: exit code 4 if something that is offered was not verified, 1 if a known failure no longer fails"))] = False,
    require_precision: RequiredPrecision = None,
    call_timeout: CallTimeout = None, memory: Memory = "", in_process: InProcess = False,
    adapters: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Check every law on the targets. A law is a property that a right result has for every input.

    Exit code 0: the laws hold. 1: a law is broken. 4: too little was verified. The last line names what was not verified."""
    from qkverify.cli import console
    from qkverify.cli.full_run import run_start
    from qkverify.results import OUTCOMES_BROKEN, Writer
    from qkverify.results.one_run import alone_in
    from qkverify.verification import requested, required_precision
    from qkverify.verification.checking import info, outcome_of
    from qkverify.verification.isolation import checkers
    from qkverify.verification.outcomes import exit_code, without_cell

    targets = list(with_adapters(targets or (), adapters))
    checker = checkers.chosen(in_process=in_process, jobs=jobs, call_seconds=call_timeout, memory=memory)
    request = requested.gathered(
        checker.plan, targets=targets, devices=device, dtypes=dtype, profile=profile, laws=law, skip=skip, own_laws=own_laws,
        known_failures=known_failures, require_precision=require_precision,
    )  # fmt: skip
    planned, selection, profile = request.plan, request.selection, request.profile
    console.settings(request)
    console.remarks(planned.implementations)
    stack = contextlib.ExitStack()
    writer = stack.enter_context(Writer(results)) if results else None
    if writer:
        stack.enter_context(alone_in(writer.path, writer.path))
        started(writer, profile, request.selected)
    broken, all_verdicts, infos = [], [], []
    outcomes = {target: without_cell(reason) for target, reason in planned.idle.items()}
    outcomes |= {str(cell): outcome_of(cell, []) for cell in planned.cells}
    for cell, verdicts, conventions in checker.check(planned.cells, selection.laws, profile, console.heading):
        verdicts += required_precision.verdicts(verdicts, request.settings.require_precision)
        console.families(verdicts)
        console.unverified(cell, verdicts)
        outcomes[str(cell)] = outcome_of(cell, verdicts, selection.laws_of(cell))
        infos.append(info(cell.implementation, dict(conventions), {}))
        broken += [v for v in verdicts if v.outcome in OUTCOMES_BROKEN]
        all_verdicts += verdicts
        if writer:
            writer.append(infos[-1])
            for verdict in verdicts:
                writer.append(verdict)
    if junit:
        from qkverify.exports import save

        save([run_start(profile, request.selected), *infos, *all_verdicts], junit, "junit")
    outdated = console.known_failures(request.known, all_verdicts)
    console.messages(all_verdicts)
    console.verdict(broken, planned, outcomes)
    stack.close()
    raise typer.Exit(exit_code(outcomes.values(), strict) or int(strict and outdated))
