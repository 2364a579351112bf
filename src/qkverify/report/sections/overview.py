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
        fault=any(row.right.word == "known" for one in tables for row in one.rows),
    )


def notes(one: Overview) -> list[str]:
    """How to read the table, as far as it has the columns."""
    found = []
    if one.bits:
        found.append(
            f"Bits lost: how much further the result is from exact than the exact result rounded to {one.dtype}; "
            "1 is twice as far."
        )
    if any(row.margin is not None for row in one.rows):
        found.append(
            "Worst margin: the largest error of the laws that hold, as a share of what the arithmetic allows; 1 is the limit."
        )
    if one.baseline and one.cases:
        found.append(f"Times are medians of one call, compared with {one.baseline} in the same rounds.")
    if one.undecided:
        found.append("With a ? the difference is too close to the noise to be sure of it.")
    if one.cases and one.memory_case is None:
        found.append("Memory was not measured in this run.")
    return found


def markdown(report: Report) -> str:
    """The first table, how to read it, the other operations, then the tables of the other dtypes."""
    tables, further = overviews(report), others(report)
    parts = [_markdown_table(report, one) for one in tables[:1]]
    if tables:
        parts.append("\n".join(f"- {line}" for line in [*notes(tables[0]), headline.control(report)] if line))
    if further:
        listed = "\n".join(f"- {other.operation}: {_in_a_line(other)}" for other in further)
        said = f"**Other operations:** {plain(others_in_a_sentence(further))}."
        parts.append(f"{said}\n\n<details><summary>each by its name</summary>\n\n{listed}\n\n</details>")
    return "\n\n".join([*parts, *(_markdown_table(report, one) for one in tables[1:])])


def _markdown_table(report: Report, one: Overview) -> str:
    against = f", times against `{one.baseline}`" if one.baseline and one.cases else ""
    title = f"**{one.dtype} on {one.device}**{against}{f' ({one.title})' * bool(one.title)}"
    said = ". ".join(one.sentences)
    header = [
        "implementation",
        "right?",
        "bits lost" if one.bits else "error",
        "worst margin",
        *map(_label, one.cases),
    ]
    rows = [_cells(row) for row in one.rows]
    if one.memory_case:
        header.append(f"memory, {_label(one.memory_case)}")
        rows = [
            [*cells, "" if row.memory is None else units.size(row.memory)]
            for cells, row in zip(rows, one.rows, strict=True)
        ]
    missing = [
        f"- no time of {', '.join(map(code, names))}: {report.links.markdown(plain(reason))}"
        for reason, names in one.reasons.items()
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
        f"{one.right.sign} {code(one.implementation)} {one.right.text}"
        + (f", worst margin {units.margin(one.margin)}" if one.margin else "")
        for one in other.implementations
    )
