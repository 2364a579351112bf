"""A table in Parquet, columns typed as `tables` says. Needs pyarrow, the extra `parquet`."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import Any

import qkverify
from qkverify.errors import UsageError
from qkverify.exports.tables import all_tables, columns_of, filled, subjects
from qkverify.results import SCHEMA, Record

ABOUT = "a typed table for pandas, DuckDB or Spark"
SUFFIXES = (".parquet", ".pq")
OFFERS = subjects()
BINARY = True


def export(records: Sequence[Record], what: str) -> bytes:
    """What each column means stands in its field's metadata under `about`."""
    arrow, parquet = _pyarrow()
    table = all_tables()[what]
    columns, rows = columns_of(table), filled(table, records)
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    fields = [arrow.field(c.name, types[c.kind], metadata={"about": c.about}) for c in columns]
    about = {"qkverify": qkverify.__version__, "schema": str(SCHEMA), "table": what}
    arrays = [
        arrow.array([row[index] for row in rows], type=field.type) for index, field in enumerate(fields)
    ]
    file = io.BytesIO()
    parquet.write_table(arrow.Table.from_arrays(arrays, schema=arrow.schema(fields, metadata=about)), file)
    return file.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise UsageError("Parquet needs pyarrow, which is not installed: pip install pyarrow") from error
