"""Who is right, how accurate, how fast against the platform's default, and with how much memory: one table for each dtype."""

from __future__ import annotations

from markupsafe import Markup

from qkverify import units
from qkverify.report import headline
from qkverify.report.markdown import code, plain, table
from qkverify.report.model import Report
from qkverify.report.overview import (
    OtherOperation,
    Overview,
    OverviewCase,
    OverviewRow,
    Speed,
    heading,
    others,
    others_in_a_sentence,
    overviews,
)
from qkverify.report.templating import fill

ORDER = 0
TITLE = "At a glance"


def html(report: Report) -> Markup:
    tables, further = overviews(report), others(report)
    if not tables and not further:
        return Markup("")
    return fill(
        "overview.jinja",
        tables=tables,
        further=further,
        control=headline.control(report),
        notes=notes,
        heading=heading,
        linked=report.links.html,
        fault=any(row.right.word == "known" for table in tables for row in table.rows),
    )


def notes(table: Overview) -> list[str]:
    """How to read the table, as far as it has the columns."""
    sentences = []
    if table.bits:
        sentences.append(
            f"Bits lost: how much further the result is from exact than the exact result rounded to {table.dtype}; "
            "1 is twice as far."
        )
    if any(row.margin is not None for row in table.rows):
        sentences.append(
            "Worst margin: the largest error of the laws that hold, as a share of what the arithmetic allows; 1 is the limit."
        )
    if table.baseline and table.cases:
        sentences.append(f"Times are medians of one call, compared with {table.baseline} in the same rounds.")
    if table.undecided:
        sentences.append("With a ? the difference is too close to the noise to be sure of it.")
    if table.cases and table.memory_case is None:
        sentences.append("Memory was not measured in this run.")
    return sentences


def markdown(report: Report) -> str:
    """The first table, how to read it, the other operations, then the tables of the other dtypes."""
    tables, further = overviews(report), others(report)
    parts = [_markdown_table(report, table) for table in tables[:1]]
    if tables:
        parts.append("\n".join(f"- {line}" for line in [*notes(tables[0]), headline.control(report)] if line))
    if further:
        listed = "\n".join(f"- {other.operation}: {_in_a_line(other)}" for other in further)
        said = f"**Other operations:** {plain(others_in_a_sentence(further))}."
        parts.append(f"{said}\n\n<details><summary>each by its name</summary>\n\n{listed}\n\n</details>")
    return "\n\n".join([*parts, *(_markdown_table(report, table) for table in tables[1:])])


def _markdown_table(report: Report, overview: Overview) -> str:
    against = f", times against `{overview.baseline}`" if overview.baseline and overview.cases else ""
    title = (
        f"**{overview.dtype} on {overview.device}**{against}{f' ({overview.title})' * bool(overview.title)}"
    )
    said = ". ".join(overview.sentences)
    header = [
        "implementation",
        "right?",
        "bits lost" if overview.bits else "error",
        "worst margin",
        *map(_label, overview.cases),
    ]
    rows = [_cells(row) for row in overview.rows]
    if overview.memory_case:
        header.append(f"memory, {_label(overview.memory_case)}")
        rows = [
            [*cells, "" if row.memory is None else units.size(row.memory)]
            for cells, row in zip(rows, overview.rows, strict=True)
        ]
    missing = [
        f"- no time of {', '.join(map(code, names))}: {report.links.markdown(plain(reason))}"
        for reason, names in overview.reasons.items()
    ]
    return "\n\n".join(
        filter(None, [title, plain(said) + "." * bool(said), table(header, rows), "\n".join(missing)])
    )


def _label(case: OverviewCase) -> str:
    return f"{heading(case.direction).lower()} {case.label}"


def _cells(row: OverviewRow) -> list[str]:
    right = f"{row.right.sign} {row.right.text}"
    return [code(row.implementation), right, row.accurate, units.margin(row.margin), *map(_speed, row.speeds)]


def _speed(speed: Speed) -> str:
    return f"{speed.text} ({speed.time})" if speed.against and speed.time else speed.text


def _in_a_line(other: OtherOperation) -> str:
    return "; ".join(
        f"{implementation.right.sign} {code(implementation.implementation)} {implementation.right.text}"
        + (f", worst margin {units.margin(implementation.margin)}" if implementation.margin else "")
        for implementation in other.implementations
    )
