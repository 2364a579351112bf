"""What became of planted bugs and of correct code."""

from __future__ import annotations

from operator import attrgetter

from qkverify import units
from qkverify.exports.tables import Column, Table, words
from qkverify.results import Planted, of_kind

TABLES = {
    "planted": Table(
        "one row for each mutant (a planted bug) and each control (correct code)",
        [
            Column("name", str, "which", attrgetter("name"), str),
            Column("kind", str, "mutant or control", attrgetter("kind"), str),
            Column("operation", str, "attention, softmax, ...", attrgetter("operation"), str),
            Column("dtype", str, "of the inputs", attrgetter("dtype"), str),
            Column("killed_by", str, "laws that it broke, separated by commas", lambda p: words(k.law for k in p.kills), str),
            Column("examples", int, "problems until the first of them broke, or all", attrgetter("examples"), units.count),
            Column("seconds", float, "how long that took", attrgetter("seconds"), units.seconds),
            Column("sentence", str, "what was planted", attrgetter("sentence")),
            Column("threads", str, "public reports of the bug", lambda p: words(p.threads)),
            Column("profile", str, "how many examples a law", attrgetter("profile")),
        ],
        lambda run: of_kind(run.records, Planted),
    )
}  # fmt: skip
