"""`qkverify list`."""

from __future__ import annotations

from typing import Annotated

import typer

from qkverify.cli.app import app
from qkverify.errors import UsageError


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="implementations, operations, laws or workloads")
    ] = "implementations",
) -> None:
    """List implementations with their options, operations with their parameters, laws with their sentences, or workloads with
    their sizes."""
    from qkverify.cli import console_lists

    pages = {
        "implementations": console_lists.implementations,
        "operations": console_lists.operations,
        "laws": console_lists.laws,
        "workloads": console_lists.workloads,
    }
    if what not in pages:
        raise UsageError.unknown("list", what, pages)
    pages[what]()
