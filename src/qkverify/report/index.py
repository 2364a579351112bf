"""The page over all devices: one row for each results file, with its verdict and a link to its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qkverify import results
from qkverify.report import headline
from qkverify.report.model import Report
from qkverify.report.templating import fill


class Entry(NamedTuple):
    """One device's folder; `problem` says why its file cannot be read."""

    folder: str
    report: Report | None
    headline: headline.Headline | None
    problem: str = ""


def html(paths: Sequence[Path]) -> str:
    return fill("index.jinja", entries=[_entry(path) for path in paths])


def _entry(path: Path) -> Entry:
    try:
        report = Report(results.read(path))
    except results.ResultsError as error:
        return Entry(path.parent.name, None, None, f"{path.name}, line {error.line}: {error.why}")
    return Entry(path.parent.name, report, headline.of(report))
