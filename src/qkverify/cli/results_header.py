"""The header of a results file that a command writes."""

from __future__ import annotations

from typing import Any


def started(writer: Any, profile: str, selection: str = "") -> Any:
    from qkverify.cli.full_run import run_start

    writer.append(run_start(profile, selection))
    return writer
