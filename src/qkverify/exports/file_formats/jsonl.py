"""The records themselves, a JSON line each, in today's format and without torn lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from qkverify.exports.tables import all_tables
from qkverify.results import Record, RunStart, line_of

ABOUT = "the records as they are, in the results format of this qkverify"
SUFFIXES = (".jsonl", ".ndjson")
TAGS = [kind.__struct_config__.tag for kind in get_args(Record)]
KINDS = {
    name: tag for tag in TAGS for name in (tag, f"{tag.replace(' ', '_')}s") if name in all_tables()
}  # by the names of the tables
OFFERS = ("everything", *KINDS)


def export(records: Sequence[Record], what: str) -> bytes:
    """The records of a kind, with the header of their run."""
    kept = [
        record
        for record in records
        if what == "everything" or isinstance(record, RunStart) or record.__struct_config__.tag == KINDS[what]
    ]
    return b"".join(line_of(record) for record in kept)
