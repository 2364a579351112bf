"""What implementations say of themselves."""

from __future__ import annotations

from operator import attrgetter

from qkverify.exports.tables import Column, Table, words
from qkverify.results import ImplementationInfo, of_kind

TABLES = {
    "implementations": Table(
        "one row for each implementation; lists are separated by commas",
        [
            Column("implementation", str, "its name", attrgetter("name"), str),
            Column("operation", str, "attention, softmax, ...", attrgetter("operation"), str),
            Column("arrays", str, "numpy, torch or jax", attrgetter("arrays"), str),
            Column("summary", str, "its first line", attrgetter("summary"), str),
            Column("file", str, "where it stands", attrgetter("file")),
            Column("dtypes", str, "in which it computes", lambda i: words(i.dtypes), str),
            Column("devices", str, "on which it runs", lambda i: words(i.devices), str),
            Column("offers", str, "options that it takes", lambda i: words(i.offers), str),
            Column("not_offered", str, "options that it does not take", lambda i: words(i.not_offered), str),
            Column("requires", str, "limits of its sizes", lambda i: words(i.requires), str),
            Column("semantics", str, "conventions, each with how it is known",
                   lambda i: words(f"{name} {choice.value} ({choice.how})" for name, choice in i.semantics.items())),
            Column("unavailable", str, "devices on which it does not run here, each with the reason",
                   lambda i: words(f"{device}: {reason}" for device, reason in i.unavailable.items())),
        ],
        lambda run: of_kind(run.records, ImplementationInfo),
    )
}  # fmt: skip
