"""Putting the report together from its sections.

A section is a module of `sections/` with `ORDER`, `TITLE`, `html(report) -> Markup` and
`markdown(report) -> str`; its name is its id in the page. Empty text means that the records have nothing to
say there.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import NamedTuple

from markupsafe import Markup

from qkverify.report import headline, sections
from qkverify.report.model import Report
from qkverify.report.templating import fill


class Part(NamedTuple):
    """A section that has something to say."""

    id: str
    title: str
    html: Markup


def html(report: Report) -> str:
    parts = [Part(name, module.TITLE, module.html(report)) for name, module in _sections()]
    return fill("page.jinja", report=report, headline=headline.of(report), parts=[p for p in parts if p.html])


def markdown(report: Report) -> str:
    parts = [(module.TITLE, module.markdown(report)) for _, module in _sections()]
    return (
        "\n\n".join([headline.markdown(report), *(f"## {name}\n\n{text}" for name, text in parts if text)])
        + "\n"
    )


def _sections() -> list[tuple[str, ModuleType]]:
    names = [module.name for module in pkgutil.iter_modules(sections.__path__)]
    modules = [(name, importlib.import_module(f"{sections.__name__}.{name}")) for name in names]
    return sorted(modules, key=lambda pair: (pair[1].ORDER, pair[0]))
