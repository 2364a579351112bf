"""Comma-separated values as RFC 4180 has them: a header, a row each, text quoted where it must be, lines ended by CR LF.

A field that is not known is empty. Numbers are written with all their digits, so that reading gives the same float64.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from qkverify.exports.tables import all_tables, columns_of, filled, subjects
from qkverify.results import Record

ABOUT = "a table for a spreadsheet, pandas or R"
SUFFIXES = (".csv",)
OFFERS = subjects()


def export(records: Sequence[Record], what: str) -> bytes:
    table, text = all_tables()[what], io.StringIO(newline="")
    writer = csv.writer(
        text, lineterminator="\r\n"
    )  # a line end of \n alone would leave \r in a text unquoted
    writer.writerow(column.name for column in columns_of(table))
    writer.writerows(filled(table, records))
    return text.getvalue().encode()
