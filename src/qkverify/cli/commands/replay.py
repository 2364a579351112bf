"""`qkverify replay`."""

from __future__ import annotations

from typing import Annotated

import typer

from qkverify.cli.app import app


@app.command()
def replay(
    name: Annotated[str, typer.Argument(metavar="ID", help="the id that the failure printed")],
) -> None:
    """Check one stored counterexample again. Exit code 1: the law is still broken."""
    from qkverify.verification.replay_command import replay_counterexample

    message = replay_counterexample(name)
    print(message or f"{name}: the law holds now")
    raise typer.Exit(1 if message else 0)
