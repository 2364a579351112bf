"""`qkverify profile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated

import typer

from qkverify.cli.adapter_options import adaptable, with_adapters
from qkverify.cli.app import app
from qkverify.cli.options import Devices, Dtypes
from qkverify.errors import UsageError


@app.command()
@adaptable
def profile(
    targets: Annotated[list[str], typer.Argument(metavar="TARGET", help="a name, module:function or path/file.py:function")],
    dtype: Dtypes = None, device: Devices = None,
    adapters: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Show which conventions a function follows. Libraries differ legitimately in some choices, such as how causal is aligned;
    each is declared, or found out by small examples."""
    from qkverify.cli import console
    from qkverify.verification.checking import conventions_of, plan
    from qkverify.verification.isolation.planning import rehearse

    targets = list(with_adapters(targets, adapters))
    rehearse(targets, device or (), dtype or ())
    planned = plan(targets, device or (), dtype or ())
    if not planned.cells:
        raise UsageError(
            "nothing to profile: no target can run with these devices and dtypes on this machine"
        )
    for cell in planned.cells:
        console.heading(cell, conventions_of(cell))
        console.conventions(cell)
        console.messages_of(cell.implementation.name)
