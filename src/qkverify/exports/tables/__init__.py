"""Records as tables: one row for each, under columns that have a name, a type and a meaning.

A module of this package holds tables in `TABLES`, by name; a new module is found by itself. Columns are a promise: one may be
added at the end, none is renamed or moved, so that a script that reads a CSV today reads it next year. Rows stand in the order
of the file, all of them; `run`, the first column, is the start of the run that wrote the record.

None is "not known". A margin of 1.7976931348623157e+308 is infinite: see `results`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from qkverify.results import Record, RunStart

Value = str | int | float | bool | None


class RecordedRun(NamedTuple):
    """What one run wrote; `start` is None for records that no header precedes."""

    start: RunStart | None
    records: list[Record]

    @property
    def started(self) -> str:
        return self.start.started if self.start else ""


class Column(NamedTuple):
    """`of` takes it from what `Table.rows` gives. One with `shown` stands in tables for people too, in these words."""

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    about: str
    of: Callable[[Any], Value]
    shown: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Table:
    """`rows` gives the things of one run that a row each is made of."""

    about: str
    columns: Sequence[Column]
    rows: Callable[[RecordedRun], Iterable[Any]]


def all_tables() -> dict[str, Table]:
    """Every table by its name."""
    return dict(_tables())


def subjects() -> tuple[str, ...]:
    """The names of all tables, timings first: what most exports can hold, and what is meant where nothing is said."""
    return ("timings", *(name for name in all_tables() if name != "timings"))


def filled(table: Table, records: Sequence[Record]) -> list[list[Value]]:
    """The rows of a table, a value for each column of `columns_of`."""
    return [
        [run.started or None, *(column.of(thing) for column in table.columns)]
        for run in runs_of(records)
        for thing in table.rows(run)
    ]


def columns_of(table: Table) -> list[Column]:
    """Its columns, `run` first."""
    return [Column("run", str, "when the run that recorded it started", lambda thing: None), *table.columns]


def runs_of(records: Sequence[Record]) -> list[RecordedRun]:
    """The records by the run that wrote them."""
    runs = [RecordedRun(None, [])]
    for record in records:
        if isinstance(record, RunStart):
            runs.append(RecordedRun(record, []))
        runs[-1].records.append(record)
    return [run for run in runs if run.records]


def words(names: Iterable[str]) -> str | None:
    """Several names in one field."""
    return ", ".join(names) or None


@cache
def _tables() -> tuple[tuple[str, Table], ...]:
    modules = [
        importlib.import_module(f"{__name__}.{module_info.name}")
        for module_info in pkgutil.iter_modules(__path__)
    ]
    return tuple(pair for module in modules for pair in module.TABLES.items())
