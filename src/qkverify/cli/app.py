"""The application that every command belongs to, and its own options."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from qkverify.cli import help_texts

STARTED = time.monotonic()  # a budget counts what is loaded for a command as well

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"max_content_width": help_texts.WIDTH},
                  help="Test attention kernels: check laws with derived error bounds, and time what is right.",
                  epilog="Exit codes: 0 the laws hold, 1 a law is broken, 2 wrong usage, 3 qkverify itself failed, "
                         "4 nothing was verified, or too little to say that the laws hold.")  # fmt: skip


def _print_version(given: bool) -> None:
    if given:
        from qkverify import __version__

        print(f"qkverify {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Test attention kernels: check laws with derived error bounds, and time what is right."""
