"""Where a recorded finding can be read: its folder where it is at hand, else the repository, else its name alone.

A terminal shows a path (`place_of`, `placed`), a page or a comment an address (`Links`). What leads nowhere is no link.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from markupsafe import Markup

CHECKOUT = (
    Path(__file__).resolve().parents[3]
)  # of a checkout; of an installed package a folder without reports
ADDRESS = re.compile(r"reports/findings/([\w.-]*\w)/?|https?://[^\s<>\"')]*[^\s<>\"').,;]")
REPOSITORY = ("repository", "source", "source code")


def place_of(folder: str) -> str:
    """The folder of a finding as somebody can open it here; nothing that leads nowhere looks like a link."""
    if Path(folder).is_dir():
        return folder
    if (CHECKOUT / folder).is_dir():
        return min(os.path.relpath(CHECKOUT / folder), str(CHECKOUT / folder), key=len)
    address = repository()
    return f"{address}/tree/main/{folder}" if address else f"{folder} in the source of qkverify"


def placed(text: str) -> str:
    """Text for a terminal, every finding in it named by its place."""
    return ADDRESS.sub(lambda match: place_of(match[0].rstrip("/")) if match[1] else match[0], text)


class Links(NamedTuple):
    """Addresses of findings as one page needs them: `beside` is the folder of findings seen from the page, "" if none, `there`
    are the names of those that lie in it."""

    beside: str = ""
    there: frozenset[str] = frozenset()

    def target(self, match: re.Match[str]) -> str:
        """Where an address in a text leads: to the findings beside the page, else to the repository's; "" is nowhere."""
        if not match[1]:
            return match[0]
        if self.beside and match[1] in self.there:
            return f"{self.beside}{match[1]}/"
        address = repository()
        return f"{address}/tree/main/reports/findings/{match[1]}" if address else ""

    def html(self, text: str) -> Markup:
        """Text with its addresses as links."""
        from markupsafe import Markup, escape  # comes with jinja2, which only pages need

        made, end = Markup(""), 0
        for match in ADDRESS.finditer(text):
            target = self.target(match)
            link = Markup('{}<a href="{}">{}</a>') if target else Markup("{}{}{}")
            made += link.format(text[end : match.start()], target, match[0])
            end = match.end()
        return made + escape(text[end:])

    def markdown(self, text: str) -> str:
        """The same in Markdown; `text` is Markdown already."""

        def link(match: re.Match[str]) -> str:
            target = self.target(match)
            return f"[{match[0]}]({target})" if target else match[0]

        return ADDRESS.sub(link, text)


def of_folder(folder: Path) -> Links:
    """The links of a page in `folder`: findings stand beside the folder of a device."""
    findings = folder.parent / "findings"
    there = (
        frozenset(found.name for found in findings.iterdir() if found.is_dir())
        if findings.is_dir()
        else frozenset()
    )
    return Links("../findings/" if there else "", there)


@cache
def repository() -> str:
    """The address of the source, as the installed package names it; empty where it names none."""
    try:
        every = importlib.metadata.metadata("qkverify").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    named = {
        name.strip().lower(): address.strip()
        for name, _, address in (entry.partition(",") for entry in every)
    }
    return next((named[name].rstrip("/") for name in REPOSITORY if name in named), "")
