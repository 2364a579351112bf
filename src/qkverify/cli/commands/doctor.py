"""`qkverify doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from qkverify.cli.app import app


@app.command()
def doctor(
    probe: Annotated[bool, typer.Option("--probe", help="also measure how matrix products and exp round on each device")] = False,
) -> None:  # fmt: skip
    """Show what this machine can run, and why it cannot run the rest."""
    from qkverify.cli import console_lists
    from qkverify.contract import DEVICES, frameworks

    console_lists.doctor()
    for device in DEVICES if probe else ():
        absent = frameworks.missing("torch") or frameworks.get("torch").unavailable(device)
        if device == "cpu" or absent is None:
            console_lists.probes(device)
        else:
            print(f"not probed on {device}: {absent}")
