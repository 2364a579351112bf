"""A Markdown table for an issue or a pull request: the columns that people read, with units."""

from __future__ import annotations

from collections.abc import Sequence

from qkverify.exports.tables import Value, all_tables, columns_of, filled, subjects
from qkverify.report.markdown import table as markdown_table
from qkverify.results import Record

ABOUT = "a table for an issue or a pull request"
SUFFIXES = (".md", ".markdown")
OFFERS = subjects()


def export(records: Sequence[Record], what: str) -> bytes:
    """Columns that are empty in every row are left out."""
    table = all_tables()[what]
    rows = filled(table, records)
    shown = [
        (index, column)
        for index, column in enumerate(columns_of(table))
        if column.shown and any(row[index] not in (None, "") for row in rows)
    ]

    def word(value: Value, index: int) -> str:
        show = columns_of(table)[index].shown
        return "" if value is None or show is None else show(value)

    cells = [[word(row[index], index) for index, _ in shown] for row in rows]
    header = [column.name.removesuffix("_seconds").replace("_", " ") for _, column in shown]
    return (markdown_table(header, cells) + "\n").encode()
