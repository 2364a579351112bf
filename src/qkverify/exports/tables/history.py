"""What is kept of earlier runs."""

from __future__ import annotations

from operator import attrgetter

from qkverify import units
from qkverify.exports.tables import Column, Table
from qkverify.results import TimingSummary, of_kind

TABLES = {
    "history": Table(
        "one row for each implementation and case that an earlier run timed",
        [
            Column("case", str, "the workload", attrgetter("case"), str),
            Column("implementation", str, "what was timed", attrgetter("implementation"), str),
            Column("device", str, "cpu or cuda", attrgetter("device"), str),
            Column("dtype", str, "of query, key and value", attrgetter("dtype"), str),
            Column("direction", str, "forward or forward+backward", attrgetter("direction"), str),
            Column("clock", str, "host, or events of the device", attrgetter("clock")),
            Column("samples", int, "how often it was timed", attrgetter("samples")),
            Column("median_seconds", float, "median time of one call", attrgetter("median_seconds"), units.seconds),
            Column("low_seconds", float, "lower end of the median's 95 % interval", attrgetter("low_seconds"), units.seconds),
            Column("high_seconds", float, "upper end of the median's 95 % interval", attrgetter("high_seconds"), units.seconds),
            Column("flops", int, "floating-point operations of one call", attrgetter("flops")),
            Column("bytes", int, "bytes that one call must read and write", attrgetter("bytes")),
            Column("peak_bytes", int, "highest memory above the inputs", attrgetter("peak_bytes"), units.size),
            Column("margin", float, "largest |error| / bound of the timed call's output", attrgetter("margin"), units.margin),
        ],
        lambda run: of_kind(run.records, TimingSummary),
    )
}  # fmt: skip
