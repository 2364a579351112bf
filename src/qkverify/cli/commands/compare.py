"""`qkverify compare`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from qkverify.cli.adapter_options import adaptable, with_adapters
from qkverify.cli.app import STARTED, app
from qkverify.cli.options import (
    Budget,
    CacheState,
    Devices,
    Dtypes,
    LawfulOnly,
    Laws,
    Passes,
    Processes,
    Rounds,
    Workloads,
)
from qkverify.errors import UsageError

COMPARE_FORMATS = ("text", "markdown")


@app.command()
@adaptable
def compare(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help=(
        "an implementation, or the results of a run: FILE, or REVISION:FILE in git"))],
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="the implementation or the results to compare with")],
    results: Annotated[Path | None, typer.Option(metavar="FILE", help=(
        "two implementations: take their times from this file instead of measuring"))] = None,
    relative_to: Annotated[str, typer.Option(metavar="NAME", help=(
        "two runs: compare ratios to this implementation, so that the machine's drift cancels"))] = "",
    fail_on: Annotated[str, typer.Option(metavar="WORD", help="exit code 1 if a case is slower, faster or different")] = "",
    across_devices: Annotated[bool, typer.Option("--across-devices", help=(
        "two runs: allow that they come from different machines"))] = False,
    workload: Workloads = None, pass_: Passes = None, dtype: Dtypes = None, device: Devices = None,
    budget: Budget = "90s", processes: Processes = 5, rounds: Rounds = 100, laws: Laws = "glance",
    cache: CacheState = "", lawful_only: LawfulOnly = False,
    format_: Annotated[str, typer.Option("--format", metavar="WORD", help=(
        "text, or markdown for the comment of a pull request: then progress goes to standard error"))] = "text",
    adapters: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Say for each case, and overall, whether the candidate is faster, slower, the same, or whether it is undecided."""
    from qkverify.cli import bench_command, compare_markdown, console_timings
    from qkverify.timing import comparison

    if fail_on not in ("", *comparison.FAIL_ON):
        raise UsageError.unknown("outcome", fail_on, comparison.FAIL_ON)
    if format_ not in COMPARE_FORMATS:
        raise UsageError.unknown("format", format_, COMPARE_FORMATS)
    notes: list[str] = []
    if comparison.is_run(candidate) or comparison.is_run(baseline):
        if adapters:
            raise UsageError(
                f"--{next(iter(adapters))} is about a function, and the results of a run were recorded already"
            )
        new, old = comparison.load(candidate), comparison.load(baseline)
        compared = comparison.runs(new, old, relative_to=relative_to, across_devices=across_devices)
        software = comparison.software_changes(new, old)
        if format_ == "text":
            console_timings.changes(software, relative_to)
        notes = [*software, console_timings.drift(relative_to)]
    else:
        candidate, baseline = with_adapters((candidate, baseline), adapters)
        request = bench_command.BenchRequest((candidate, baseline), workload or (), pass_ or (), dtype or (),
                                             device or (), budget, processes, rounds, laws, cache, lawful_only)  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr if format_ == "markdown" else sys.stdout):
            side = (
                comparison.load(str(results))
                if results
                else bench_command.run(request, bench_command.bench_file(), STARTED).side
            )
        compared = comparison.implementations(side, *bench_command.names_of(candidate, baseline, side))
    if format_ == "markdown":
        print(compare_markdown.comment(compared, candidate, baseline, notes))
    else:
        console_timings.comparison(compared)
    raise typer.Exit(1 if comparison.fails(compared, fail_on) else 0)
