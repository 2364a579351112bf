"""Where a recorded finding can be read: its folder where it is at hand, else the repository, else its name alone."""

from __future__ import annotations

import importlib.metadata
import os
from functools import cache
from pathlib import Path

CHECKOUT = (
    Path(__file__).resolve().parents[3]
)  # of a checkout; of an installed package a folder without reports
REPOSITORY = ("repository", "source", "source code")


def place_of(folder: str) -> str:
    """The folder of a finding as somebody can open it here; nothing that leads nowhere looks like a link."""
    if Path(folder).is_dir():
        return folder
    if (CHECKOUT / folder).is_dir():
        return min(os.path.relpath(CHECKOUT / folder), str(CHECKOUT / folder), key=len)
    address = repository()
    return f"{address}/tree/main/{folder}" if address else f"{folder} in the source of qkverify"


@cache
def repository() -> str:
    """The address of the source, as the installed package names it; empty where it names none."""
    try:
        every = importlib.metadata.metadata("qkverify").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    named = {
        name.strip().lower(): address.strip() for name, _, address in (one.partition(",") for one in every)
    }
    return next((named[name].rstrip("/") for name in REPOSITORY if name in named), "")
