"""`qkverify report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from qkverify.cli.adapter_options import adaptable, with_adapters
from qkverify.cli.app import app
from qkverify.cli.failing import fail
from qkverify.cli.options import Devices, Dtypes, Profile
from qkverify.errors import UsageError


@app.command()
@adaptable
def report(
    words: Annotated[list[str] | None, typer.Argument(metavar="[FOLDER | TARGET...]", help=(
        "a folder with results.jsonl, default: this device's; with --run implementations, default: all"))] = None,
    run: Annotated[bool, typer.Option("--run", help=(
        "first verify and time everything that runs here, or only the implementations that are named"))] = False,
    against: Annotated[str, typer.Option(metavar="NAME", help=(
        "with implementations: what they are compared with; default: torch's scaled_dot_product_attention"))] = "",
    dtype: Dtypes = None,
    device: Devices = None,
    resume: Annotated[bool, typer.Option("--resume", help="with --run: continue an interrupted run")] = False,
    profile: Profile = "quick",
    reports: Annotated[
        Path, typer.Option(metavar="FOLDER", help="the folder with the reports of all devices")
    ] = Path("reports"),
    budget: Annotated[str, typer.Option(metavar="TIME", help="time for timing: 90s, 5m")] = "150s",
    adapters: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write a page and its Markdown summary from recorded results. With --run, verify and time everything first, or only the
    implementations that are named: their report goes into a folder of their name."""
    from qkverify.cli import console_matrix, own_report
    from qkverify.cli.bench_command import seconds_of
    from qkverify.cli.console_overview import overview
    from qkverify.cli.full_run import best_device, record_everything
    from qkverify.report.model import Report
    from qkverify.results import Verdict, read
    from qkverify.results.fingerprint import device_slug
    from qkverify.verification.isolation.planning import rehearse
    from qkverify.verification.outcomes import exit_code, of_records

    folder, targets = own_report.folder_or_targets(words or ())
    targets = with_adapters(targets, adapters)
    if run:
        rehearse(targets, device or (), dtype or ())
    requested = own_report.gathered(targets, against, device or (), run)
    if dtype and not requested:
        raise UsageError("--dtype narrows a report of implementations: name them")
    place = (
        own_report.folder_of(requested, reports)
        if requested
        else folder or reports / device_slug(best_device())
    )
    path = place / "results.jsonl"
    interrupted = False
    if run:
        try:
            record_everything(path, profile=profile, budget_seconds=seconds_of(budget),
                              devices=device or (), resume=resume, targets=requested.everything if requested else (),
                              dtypes=dtype or (), against=own_report.name_of(requested.against) if requested else "")  # fmt: skip
        except KeyboardInterrupt:
            if not path.is_file():
                raise
            interrupted = True
    elif not path.is_file():
        raise UsageError(f"{path} does not exist; make it with: qkverify report --run")
    made = _written(path, place, measured=run)
    records = read(path)
    console_matrix.matrix([record for record in records if isinstance(record, Verdict)])
    overview(Report(records))
    print(f"\n{made}\nraw:     {path}")
    if interrupted:
        fail("interrupted: the page shows what was done by then; --resume goes on with it", 130)
    outcomes = of_records(own_report.without_baseline(records, requested) if requested else records)
    raise typer.Exit(exit_code(outcomes.values()) if outcomes else 0)


def _written(path: Path, place: Path, *, measured: bool) -> str:
    """Write page, summary and index, and say where they are. Where jinja2 is not, what was just `measured` is not lost."""
    from qkverify.report import write, write_index

    try:
        page, summary = write(path, place)
        write_index(place.parent)
    except UsageError as error:
        if not measured:
            raise
        return f"no page: {error}\n         where it is installed: qkverify report {place}"
    return f"page:    {page}\nsummary: {summary}"
