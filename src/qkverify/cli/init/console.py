"""What `qkverify init` prints."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence

from qkverify.cli.init import files
from qkverify.cli.init.candidates import Candidate
from qkverify.cli.init.files import File, Set
from qkverify.verification import settings


def candidates(proposed: Sequence[Candidate]) -> None:
    """Each function that looks like attention, and the line to run for it."""
    if not proposed:
        print("no function in this folder takes a query, a key and a value; name yours:")
        print("  qkverify init path/file.py:function")
        print("other operations, and the parameters that identify them: qkverify list operations")
        return
    print("functions in this folder that look like attention (the source was read, nothing was imported):")
    for candidate in proposed:
        command = f"qkverify verify {shlex.quote(candidate.target)}"
        if candidate.needs_adapter:
            command = f"qkverify init {shlex.quote(candidate.target)}    # it needs an adapter"
        print(f"\n  {candidate}\n      {command}")
    print("\nfiles for pytest, CI and known failures: qkverify init TARGET")


def written(file: File) -> None:
    """Write a file that is not there yet, and say what was done."""
    if not file.path.exists():
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.text, encoding="utf-8")
        print(f"wrote          {file.path}: {file.about}")
        return
    lacking = file.lacking()
    names_target = ", and names this target" if file.names and not lacking else ""
    print(f"exists         {file.path}: left as it is{names_target}")
    if lacking:
        print(f"    {file.about}: add\n{textwrap.indent(lacking.rstrip(), '        ')}")


def contents(file: File) -> None:
    """A file as it would be written."""
    there = ", which already exists and is left as it is" if file.path.exists() else ""
    print(f"--- {file.path}{there}\n{file.text}")


def next_steps(prepared: Set) -> None:
    """What is left to do by hand."""
    for what in prepared.to_fill_in:
        print(f"fill in        {prepared.target}: {what}")
    lines = textwrap.indent(files.settings_for(prepared.target).rstrip(), "    ")
    known = settings.read()
    if known.file is None:
        print(f"for `qkverify verify` without arguments, add to pyproject.toml:\n{lines}")
    elif prepared.target not in known.targets:
        print(
            f'for `qkverify verify` without arguments, add "{prepared.target}" to the targets of {known.file}'
        )
    print(f"next           qkverify verify {shlex.quote(prepared.target)} --profile quick")
