"""Filling in templates: everything that is not Markup is escaped, and an unknown name is an error."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from qkverify import units
from qkverify.report.model import element_id
from qkverify.report.svg import COLOURS, MARKS

TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, **names: Any) -> Markup:
    """A template filled in."""
    return Markup(_environment().get_template(template).render(**names))


def source(name: str) -> Markup:
    """A file of the templates folder as it stands: the style sheet or the script."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def digest(name: str) -> str:
    """What a content security policy knows an inline script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source(name).encode()).digest()).decode()


def breakable(text: str) -> Markup:
    """A name that may be broken into lines after its underscores and hyphens."""
    return Markup(str(escape(text)).replace("_", "_<wbr>").replace("-", "-<wbr>"))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(
        units=units, source=source, digest=digest, element_id=element_id, colours=COLOURS, marks=MARKS
    )
    environment.filters["breakable"] = breakable
    return environment
