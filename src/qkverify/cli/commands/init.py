"""`qkverify init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkverify.cli.app import app


@app.command()
def init(
    target: Annotated[str | None, typer.Argument(metavar="TARGET", help=(
        "path/file.py:function or module:function; without it, list functions in this folder that look like attention"))] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="write an adapter even if none seems to be needed")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the files, and write none")] = False,
) -> None:  # fmt: skip
    """Set up qkverify in your own repository. Writes a test, a CI workflow, a file for known failures, a file for your own laws,
    and an adapter if one is needed."""
    from qkverify.cli.init import candidates, console
    from qkverify.cli.init.files import files_for

    if target is None:
        console.candidates(candidates.of_folder(Path()))
        return
    prepared = files_for(target, with_adapter=adapter)
    for file in prepared.files:
        (console.contents if dry_run else console.written)(file)
    if not dry_run:
        console.next_steps(prepared)
