"""What was timed of operations other than attention: a row for each implementation at each size."""

from __future__ import annotations

from operator import attrgetter
from statistics import median

from qkverify import units
from qkverify.exports.tables import Column, Table
from qkverify.results import OperationTiming, of_kind


def _median(timing: OperationTiming) -> float | None:
    return median(timing.seconds) if timing.seconds else None


def _sizes(timing: OperationTiming) -> str:
    return " ".join(f"{letter}={size}" for letter, size in timing.sizes.items())


TABLES = {
    "operation_timings": Table(
        "one row for each implementation of another operation than attention, at each size",
        [
            Column("operation", str, "what is computed", attrgetter("operation"), str),
            Column("case", str, "short or long", attrgetter("case"), str),
            Column("sizes", str, "letters of the operation's sizes", _sizes, str),
            Column("implementation", str, "whose", attrgetter("implementation"), str),
            Column("device", str, "cpu or cuda", attrgetter("device"), str),
            Column("dtype", str, "of the inputs", attrgetter("dtype"), str),
            Column("seconds", float, "median of one call", _median, units.seconds),
            Column("samples", int, "how many calls or rows of calls", lambda t: len(t.seconds)),
            Column("margin", float, "largest error of the timed call over its bound", attrgetter("margin")),
            Column("reason", str, "why there is no time", attrgetter("reason"), str),
        ],
        lambda run: of_kind(run.records, OperationTiming),
    )
}  # fmt: skip
