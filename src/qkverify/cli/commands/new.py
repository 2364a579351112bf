"""`qkverify new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkverify.cli.app import app


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="the implementation's name, a Python identifier")
    ],
    arrays: Annotated[str, typer.Option(metavar="FRAMEWORK", help="numpy, torch or jax")] = "numpy",
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="where to write it")] = Path(),
) -> None:
    """Write the file of a new implementation, and say what to run next."""
    from qkverify.cli.scaffold import write_new

    path = write_new(name, arrays, folder)
    print(f"wrote {path}\nnext:  qkverify verify {path}")
