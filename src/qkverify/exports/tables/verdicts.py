"""What the laws said."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from qkverify import units
from qkverify.exports.tables import Column, Table
from qkverify.results import Verdict, of_kind


def _example(name: str) -> Any:
    return lambda verdict: verdict.counterexample and getattr(verdict.counterexample, name)


def _tested(name: str) -> Any:
    return lambda verdict: verdict.tested and getattr(verdict.tested, name)


TABLES = {
    "verdicts": Table(
        "one row for each law held against one implementation, device and dtype",
        [
            Column("implementation", str, "whom", attrgetter("implementation"), str),
            Column("device", str, "cpu or cuda", attrgetter("device"), str),
            Column("dtype", str, "of the inputs", attrgetter("dtype"), str),
            Column("family", str, "the law's family", attrgetter("family"), str),
            Column("law", str, "the law's name", attrgetter("law"), str),
            Column("outcome", str, "passed, failed, finding, not offered, unavailable, crashed, timed out, error",
                   attrgetter("outcome"), str),
            Column("reason", str, "why it was not judged, or what a finding is", attrgetter("reason"), str),
            Column("examples", int, "problems that were tried", attrgetter("examples"), units.count),
            Column("margin", float, "largest |error| / bound", attrgetter("margin"), units.margin),
            Column("seconds", float, "how long it took", attrgetter("seconds"), units.seconds),
            Column("exact", bool, "whether the law has no bound, but must hold exactly", attrgetter("exact")),
            Column("sentence", str, "the law", attrgetter("sentence")),
            Column("counterexample_problem", str, "the smallest problem that breaks it", _example("problem")),
            Column("counterexample_location", str, "the worst element", _example("location")),
            Column("counterexample_got", str, "what came back there", _example("got")),
            Column("counterexample_exact", str, "what is right there", _example("exact")),
            Column("counterexample_bound", str, "how far off it may be", _example("bound")),
            Column("counterexample_margin", float, "how far off it is, in bounds", _example("margin")),
            Column("counterexample_replay", str, "qkverify replay ID checks it again", _example("replay")),
            Column("counterexample_message", str, "all that a person is told", _example("message")),
            Column("results_compared", int, "problems whose result was compared with the reference", _tested("results")),
            Column("gradients_compared", int, "problems whose gradients were", _tested("gradients")),
        ],
        lambda run: of_kind(run.records, Verdict),
    )
}  # fmt: skip
