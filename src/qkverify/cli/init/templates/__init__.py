"""The files that `qkverify init` writes: their text, with $names to be filled in."""

from __future__ import annotations

from importlib import resources
from string import Template


def filled(name: str, **values: str) -> str:
    """A template with its values. Raises KeyError for one that is missing."""
    text = resources.files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values)
