"""The table that ends a report on the terminal: right, accurate, fast, memory. What it says is decided in `report.overview`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from qkverify import units
from qkverify.cli.console import console
from qkverify.cli.console_timings import aligned
from qkverify.report import headline
from qkverify.report.finding_links import placed
from qkverify.report.model import Report
from qkverify.report.overview import Overview, OverviewRow, heading, others, others_in_a_sentence, overviews

STYLES = {"holds": "green", "known": "yellow", "broken": "bold red", "not verified": "yellow"}


def overview(report: Report) -> None:
    """A table for each dtype that was timed, that with most times last, nearest to the prompt; other operations before."""
    tables, further = overviews(report), others(report)
    tables = [table for table in tables if table.timed] or tables
    if further:
        console.print(f"\nother operations: {others_in_a_sentence(further)}", markup=False)
    for table in reversed(tables):
        _table(table)
    if tables and (noise := headline.control(report)):
        console.print(noise, style="dim", markup=False)
    console.print(f"\n{headline.sentence(report)}", style="bold", markup=False)


def _table(table: Overview) -> None:
    against = f", times as a multiple of those of {table.baseline}" if table.baseline and table.cases else ""
    console.print(f"\n[bold]{escape(table.place)}[/bold]{escape(against)}")
    directions = [
        name
        for direction, cases in table.directions.items()
        for name in (heading(direction).lower(), *[""] * (len(cases) - 1))
    ]
    top = ["", "", "", "", *directions, *[""] * bool(table.memory_case)]
    head = [
        "implementation",
        "right?",
        "bits lost" if table.bits else "error",
        "margin",
        *(case.label for case in table.cases),
    ]
    head += [f"memory at {table.memory_case.label}"] if table.memory_case else []
    rows = [top, head] if any(directions) else [head]
    aligned(
        [[escape(word) for word in row] for row in rows] + [_row(table, row) for row in table.rows],
        right=range(2, len(head)),
    )
    for sentence in table.sentences:
        console.print(f"  {sentence}", markup=False)
    for reason, names in table.reasons.items():
        console.print(f"  no time of {', '.join(names)}: {placed(reason)}", style="dim", markup=False)
    if table.undecided:
        console.print(
            "  ?: the difference is too close to the noise to be sure of it", style="dim", markup=False
        )


def _row(table: Overview, row: OverviewRow) -> Sequence[str]:
    style = STYLES[row.right.word]
    cells = [
        escape(row.implementation),
        f"[{style}]{row.right.sign} {escape(row.right.text)}[/{style}]",
        escape(row.accurate),
        units.margin(row.margin),
        *(escape(speed.short) for speed in row.speeds),
    ]
    return [*cells, "" if row.memory is None else units.size(row.memory)] if table.memory_case else cells
