"""`qkverify replay`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated

import typer

from qkverify.cli.adapter_options import adaptable, with_adapters
from qkverify.cli.app import app
from qkverify.cli.options import CallTimeout


@app.command()
@adaptable
def replay(
    name: Annotated[str, typer.Argument(metavar="ID", help="the id that the failure printed, or a JSON file")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help=(
        "module:function or path/file.py:function; a JSON file needs it: no path that such a file names is imported"))] = "",
    call_timeout: CallTimeout = None,
    adapters: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Check one stored counterexample again. Exit code 1: the law is still broken."""
    from qkverify.verification.isolation.limits import limits
    from qkverify.verification.isolation.replaying import replayed

    (target,) = with_adapters((target,), adapters) if target or adapters else ("",)
    message = replayed(name, target, limits(call_timeout))
    print(message or f"{name}: the law holds now")
    raise typer.Exit(1 if message else 0)
