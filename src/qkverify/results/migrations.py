"""Results of other days: which format a line is in, and how it becomes a line of this qkverify's.

`results.SCHEMA` counts the formats. A new field with a default is the same format (a reader passes over fields that it does
not know), and so is a new kind of record (an older reader refuses that line, and says that a newer one may know it). The number
grows when a field is renamed, leaves, or changes its meaning, and with it grows `MIGRATIONS`: the entry under n takes one record
of format n, as the dictionary that its JSON holds, to format n + 1. Files are never rewritten; they are taken along as they are
read, so results of every format stay readable.

What no format ever changes: a line is one JSON object, its `type` says what it is, and the record of type "run" that
precedes a run's others holds `schema`, the format of all that follows until the next, and `qkverify`, who wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Fields = dict[str, Any]
Migration = Callable[[Fields], Fields]

MIGRATIONS: dict[int, Migration] = {}  # format 1 is the first


class OtherFormat(Exception):
    """The file is in a format that this qkverify does not read: nothing that follows in it can be understood."""


class Header(msgspec.Struct, frozen=True):
    """What every format says of itself."""

    type: str = ""
    schema: int = 1
    qkverify: str = "unknown"


_headers = msgspec.json.Decoder(Header)


def format_of(line: bytes, before: int) -> tuple[int, str]:
    """The format of a line and who wrote it, `before` being that of the line before; "" where the line is no header."""
    if b'"run"' not in line:
        return before, ""
    header = _headers.decode(line)
    return (header.schema, header.qkverify) if header.type == "run" else (before, "")


def refuse_unreadable(schema: int, current: int, writer: str, migrations: Mapping[int, Migration]) -> None:
    """Raise OtherFormat, in a sentence that says what reads the file, where no migrations lead from `schema` to `current`."""
    ours = _this()
    if schema > current:
        raise OtherFormat(
            f"written in schema {schema} by qkverify {writer}; this is qkverify {ours}, which reads up to schema {current}: "
            f"qkverify {writer} or newer reads it"
        )
    missing = [number for number in range(schema, current) if number not in migrations]
    if missing:
        raise OtherFormat(
            f"written in schema {schema} by qkverify {writer}; this is qkverify {ours}, which reads schema {missing[-1] + 1} "
            f"and newer: qkverify {writer} reads it, or write it anew"
        )


def migrated(line: bytes, schema: int, current: int, migrations: Mapping[int, Migration]) -> Fields:
    """The record of a line of format `schema`, as the fields that it has in format `current`."""
    fields = msgspec.json.decode(line, type=Fields)
    try:
        for number in range(schema, current):
            fields = migrations[number](fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of schema {schema}: {error!r}") from error
    return {**fields, "schema": current} if fields.get("type") == "run" else fields


def _this() -> str:
    from qkverify import __version__

    return __version__
