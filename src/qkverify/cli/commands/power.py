"""`qkverify power`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkverify.cli.app import app
from qkverify.cli.options import Jobs, Profile
from qkverify.cli.results_header import started


@app.command()
def power(
    words: Annotated[list[str] | None, typer.Argument(metavar="WORD", help=(
        "only mutants and controls with this word in their name; default: all"))] = None,
    profile: Profile = "default", jobs: Jobs = 2,
    matrix: Annotated[bool, typer.Option("--matrix", help="check every law on every mutant, also after the first kill")] = False,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="write the records to this file")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", envvar="QKVERIFY_SEED", min=0, help=(
        "generate the same problems in every run with this number; without it, fresh ones"))] = None,
) -> None:  # fmt: skip
    """Mutation testing: measure how strong the laws are. A mutant is correct code with one known bug planted in it; a law that
    breaks on it kills it. A control is correct code, which no law may accuse.

    Exit code 1: a mutant survives, or a control is accused."""
    from qkverify.cli import console, console_mutation_testing
    from qkverify.results import Writer
    from qkverify.verification.mutation_testing import FOLDERS, idle_laws, left_out, measure

    records = []
    if results:
        results.unlink(missing_ok=True)
    writer = started(Writer(results), profile) if results else None
    for record in measure(words or (), profile=profile, jobs=jobs, matrix=matrix, seed=seed):
        console_mutation_testing.planted(record)
        records.append(record)
        if writer:
            writer.append(record)
    console_mutation_testing.power(records, idle_laws(records) if matrix and not words else None)
    for gone in [gone for folder in FOLDERS for gone in left_out(folder)]:
        console.console.print(f"left out: {gone.name}: {gone.reason}", markup=False)
    raise typer.Exit(0 if all(bool(record.kills) == (record.kind == "mutant") for record in records) else 1)
