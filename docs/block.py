"""What the documentation is made of: named functions that return Markdown, with their pictures as SVG files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from qkverify.report.templating import TEMPLATES

ROOT = Path(__file__).parents[1]


class Made(NamedTuple):
    """Markdown, and the pictures that it shows by file name."""

    text: str
    pictures: dict[str, str]


@dataclass
class Block:
    """A function of the documentation; one with a `digest` is made from results, of which it says which."""

    make: Callable[[], str | Made]
    digest: Callable[[], str] | None = None
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        return self.digest is None or bool(self.digest())

    @property
    def source(self) -> str:
        return f" from {self.digest()}" if self.digest else ""

    @cached_property
    def made(self) -> Made:
        text_or_made = self.make()
        return text_or_made if isinstance(text_or_made, Made) else Made(text_or_made, {})


BLOCKS: dict[str, Block] = {}


def block(name: str, digest: Callable[[], str] | None = None) -> Callable[[Callable[[], str | Made]], None]:
    """Registers a function under the name that stands in the marker."""

    def register(make: Callable[[], str | Made]) -> None:
        BLOCKS[name] = Block(make, digest)

    return register


def picture(name: str, chart: str, said: str) -> Made:
    """A chart of the report as a picture of its own: the report's colours, in light and in dark."""
    height = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', chart)
    assert height
    marks = re.search(
        r'<circle id="m0".*?</defs>', (TEMPLATES / "page.jinja").read_text(encoding="utf-8"), re.DOTALL
    )
    assert marks
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="{1.5 * float(height[1]):g}" '
    ground = '<rect width="400" height="100%" fill="var(--paper)"/>'
    body = chart.split(">", 1)[1]
    attributes = chart.split(">", 1)[0].removeprefix("<svg ").replace(' tabindex="0"', "")
    svg = f"{head}{attributes}><style>{_style()}</style><defs>{marks[0]}{ground}{body}\n"
    return Made(f"![{said}](pictures/{name}.svg)", {f"{name}.svg": svg})


def _style() -> str:
    """The rules of the page's style sheet that its charts need."""
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    light = css[css.index(":root {") : css.index("* { box-sizing")]
    charts = [line for line in css.splitlines() if re.match(r"\.(chart|series|c\d)", line)]
    return "\n".join([light, *charts]).replace("width: 100%; max-width: 440px; height: auto; ", "")
