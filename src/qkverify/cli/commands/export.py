"""`qkverify export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkverify.cli.app import app
from qkverify.errors import UsageError


@app.command()
def export(
    results: Annotated[Path | None, typer.Argument(metavar="RESULTS", help=(
        "a results file, the folder of a report, or its history folder"))] = None,
    to: Annotated[str | None, typer.Option(metavar="FORMAT", help=(
        "csv, markdown, parquet, junit, ...; default: by the ending of --output"))] = None,
    what: Annotated[str | None, typer.Option(metavar="TABLE", help=(
        "timings, samples, verdicts, accuracy, ...; default: the format's usual table"))] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="the file to write; default: standard output")] = None,
    columns: Annotated[bool, typer.Option("--columns", help="explain the columns, and export nothing")] = False,
) -> None:  # fmt: skip
    """Write results for other tools: tables as CSV, Markdown, Parquet or JSON lines, verdicts as JUnit XML."""
    from qkverify import exports

    if columns:
        print(exports.explained(what))
    elif results is None:
        raise UsageError("export needs results: a file, or the folder of a report")
    else:
        exports.write(results, to, what, output)
