"""Functions in files of their own, with what their first calls show."""

from __future__ import annotations

import textwrap
from pathlib import Path

from qkverify import probes
from qkverify.contract import Implementation


def found_in_a_file(folder: Path, head: str, text: str, name: str) -> Implementation:
    """The function of this name in a new file of the folder: a head, and a text that may be indented."""
    file = folder / f"mine_{len([*folder.iterdir()])}.py"
    file.write_text(head + textwrap.dedent(text))
    (implementation,) = probes.find(f"{file}:{name}")
    return implementation
