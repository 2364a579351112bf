"""Errors on ordinary numbers."""

from __future__ import annotations

from operator import attrgetter

from qkverify import units
from qkverify.exports.tables import Column, Table
from qkverify.results import Accuracy, of_kind

TABLES = {
    "accuracy": Table(
        "one row for each configuration whose errors were measured on ordinary numbers",
        [
            Column("implementation", str, "whose", attrgetter("implementation"), str),
            Column("device", str, "cpu or cuda", attrgetter("device"), str),
            Column("dtype", str, "of the inputs", attrgetter("dtype"), str),
            Column("elements", int, "output elements that were compared", attrgetter("elements"), units.count),
            Column("positive", float, "share of errors above zero", attrgetter("positive"), units.percent),
            Column("lean", float, "mean error away from zero, in units of the last place", attrgetter("lean"),
                   lambda value: f"{value:+.4f}"),
            Column("lean_error", float, "standard error of lean", attrgetter("lean_error")),
            Column("ratio", float, "root mean square error over a plain textbook's", attrgetter("ratio"), units.ratio),
            Column("worst_ratio", float, "largest error over a plain textbook's", attrgetter("worst_ratio"), units.ratio),
            Column("bits_lost", float, "log2 of the root mean square error over that of the exact result rounded to the dtype",
                   attrgetter("bits_lost"), lambda value: f"{value:.2f}"),
        ],
        lambda run: of_kind(run.records, Accuracy),
    )
}  # fmt: skip
