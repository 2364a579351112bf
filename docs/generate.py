"""Writes every number and picture of the documentation: between markers in docs/*.md, and into docs/pictures/.

    python docs/generate.py           # write
    python docs/generate.py --check   # exit 1 where a block is not what its code makes of it

A block is a function of `simulated.py`, `bounds.py`, `corners.py` or `recorded.py`; its name stands in the marker:

    <!-- generated: NAME -->
    ...
    <!-- end -->

Simulations are seeded, so they are the same everywhere. A block that is made from results names their digest,
`<!-- generated: NAME from 1a2b3c4d5e6f -->`. Where the results are other ones by now (a new run on this machine), a check
says so and does not accuse the block: whoever commits new results runs this file again.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import bounds  # noqa: E402  (they stand beside this file, whatever the working folder is)
import corners  # noqa: E402
import detected  # noqa: E402
import recorded  # noqa: E402
import simulated  # noqa: E402
from block import BLOCKS  # noqa: E402

ROOMS = (bounds, corners, detected, recorded, simulated)  # importing them registers their blocks
MARKED = re.compile(
    r"<!-- generated: (?P<name>[\w-]+)(?: from (?P<digest>\w+))? -->\n(?P<text>.*?)<!-- end -->", re.DOTALL
)


class Page(NamedTuple):
    """A page as it should be: its text, the pictures beside it, and what a check has to say."""

    text: str
    pictures: dict[str, str]
    stale: list[str]
    notes: list[str]


def filled(path: Path, pictures: Path) -> Page:
    """The page with its blocks made anew."""
    drawn: dict[str, str] = {}
    stale: list[str] = []
    notes: list[str] = []

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            stale.append(
                f"{path.name}: no function makes the block {name}; there are {', '.join(sorted(BLOCKS))}"
            )
            return match[0]
        block = BLOCKS[name]
        if not block.available:
            notes.append(f"{path.name}: {name} needs the results under reports/, and there are none")
            return match[0]
        made = block.made
        drawn.update(made.pictures)
        text = f"<!-- generated: {name}{block.source} -->\n{made.text.strip()}\n<!-- end -->"
        differs = text != match[0] or any(
            _read(pictures / file) != svg for file, svg in made.pictures.items()
        )
        if differs and block.source and f" from {match['digest']}" != block.source:
            notes.append(f"{path.name}: {name} was made from other results than those under reports/")
        elif differs:
            stale.append(f"{path.name}: {name} is not what its code makes")
        return text

    return Page(MARKED.sub(fill, path.read_text(encoding="utf-8")), drawn, stale, notes)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a block is stale")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the pages are")
    arguments = parser.parse_args()
    pages = {
        path: filled(path, arguments.folder / "pictures") for path in sorted(arguments.folder.glob("*.md"))
    }
    if arguments.check:
        for page in pages.values():
            print(*page.stale, *page.notes, sep="\n", end="\n" if page.stale or page.notes else "")
        return int(any(page.stale for page in pages.values()))
    (arguments.folder / "pictures").mkdir(exist_ok=True)
    for path, page in pages.items():
        path.write_text(page.text, encoding="utf-8", newline="\n")
        for file, svg in page.pictures.items():
            (arguments.folder / "pictures" / file).write_text(svg, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
