"""What was timed: a row for each cell, or for each sample of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from qkverify import units
from qkverify.exports.tables import Column, RecordedRun, Table, Value
from qkverify.results import Ceiling, Timing, of_kind
from qkverify.timing import marks
from qkverify.timing.ceilings import fraction_of_roofline
from qkverify.timing.statistics import spread

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class TimingRow(NamedTuple):
    """One timing; `quantiles` of its seconds, None where it has none, and the share of the roofline its median reaches."""

    timing: Timing
    quantiles: tuple[float | None, ...]
    share: float | None

    @property
    def median(self) -> float | None:
        return self.quantiles[2]


class SampleRow(NamedTuple):
    """One sample; `process` is None in files from before there were several."""

    timing: Timing
    round: int
    process: int | None
    disturbed: bool
    seconds: float


def timed(run: RecordedRun) -> Iterator[TimingRow]:
    ceilings = of_kind(run.records, Ceiling)
    for timing in of_kind(run.records, Timing):
        if not timing.seconds:
            yield TimingRow(timing, (None,) * len(QUANTILES), None)
            continue
        quantiles = tuple(float(q) for q in np.quantile(timing.seconds, QUANTILES))
        share = fraction_of_roofline(timing, quantiles[2], ceilings) if quantiles[2] > 0 else None
        yield TimingRow(timing, quantiles, share)


def samples(run: RecordedRun) -> Iterator[SampleRow]:
    for timing in of_kind(run.records, Timing):
        processes: list[int | None] = [*timing.processes] or [None for _ in timing.seconds]
        for number, process, seconds in zip(timing.rounds, processes, timing.seconds, strict=True):
            yield SampleRow(timing, number, process, number in timing.disturbed, seconds)


def _field(name: str) -> Any:
    return lambda thing: getattr(thing.timing, name)


def _size(letter: str) -> Any:
    return lambda thing: thing.timing.sizes.get(letter)


def _quantile(index: int) -> Any:
    return lambda thing: thing.quantiles[index]


def _rate(amount: str) -> Any:
    def rate(thing: TimingRow) -> Value:
        return getattr(thing.timing, amount) / thing.median if thing.median else None

    return rate


WHICH = [
    Column("case", str, "the workload", _field("case"), str),
    Column("implementation", str, "what was timed", _field("implementation"), str),
    Column("device", str, "cpu or cuda", _field("device"), str),
    Column("dtype", str, "of query, key and value", _field("dtype"), str),
    Column("direction", str, "forward or forward+backward", _field("direction"), str),
    Column("clock", str, "host, or events of the device", _field("clock")),
]
SIZES = [
    Column(letter, int, about, _size(letter))
    for letter, about in {
        "B": "batch entries",
        "H": "query heads",
        "G": "key and value heads",
        "Q": "queries",
        "K": "keys",
        "D": "size of queries and keys",
        "E": "size of values",
    }.items()
]
TIMES = [
    Column("causal", bool, "whether a query sees no later key", _field("causal")),
    Column("options", str, "further options of the call, in words", _field("options")),
    Column("samples", int, "how often it was timed", lambda t: len(t.timing.seconds)),
    Column("median_seconds", float, "median time of one call", _quantile(2), units.seconds),
    Column("least_seconds", float, "least of all", _quantile(0)),
    Column("low_seconds", float, "lower quartile", _quantile(1), units.seconds),
    Column("high_seconds", float, "upper quartile", _quantile(3), units.seconds),
    Column("greatest_seconds", float, "greatest of all", _quantile(4)),
    Column("spread", float, "median distance from the median, as a share of it",
           lambda t: spread(t.timing.seconds) if t.median else None),
    Column("flops", int, "floating-point operations of one call", _field("flops")),
    Column("bytes", int, "bytes that one call must read and write", _field("bytes")),
    Column("flop_per_second", float, "flops / median_seconds", _rate("flops"), units.flops),
    Column("bytes_per_second", float, "bytes / median_seconds", _rate("bytes")),
    Column("roofline_share", float, "share of what the ceilings measured in the same run allow",
           lambda t: t.share, units.percent),
    Column("peak_bytes", int, "highest memory above the inputs", _field("peak_bytes"), units.size),
    Column("margin", float, "largest |error| / bound of the timed call's output", _field("margin"), units.margin),
    Column("verified", bool, "whether the timed call's output was checked", _field("verified")),
    Column("reason", str, "why it was not timed", _field("reason"), str),
    Column("cache", str, "hot or cold before each call", _field("cache")),
    Column("disturbed", int, "in how many of the samples the device was held back", lambda t: len(t.timing.disturbed)),
    Column("processes", int, "in how many processes it was timed", lambda t: len(set(t.timing.processes)) or None),
    Column("known", str, "findings and broken laws of the implementation", lambda t: marks.brief(t.timing.marks), str),
]  # fmt: skip

TABLES = {
    "timings": Table(
        "one row for each implementation and case that was to be timed", [*WHICH, *SIZES, *TIMES], timed
    ),
    "samples": Table(
        "one row for each time that was taken",
        [
            *WHICH,
            Column("round", int, "samples of a round were taken within moments", lambda s: s.round, str),
            Column("seconds", float, "time of one call", lambda s: s.seconds, units.seconds),
            Column("process", int, "which process the round ran in", lambda s: s.process, str),
            Column(
                "disturbed", bool, "whether the device was held back in that round", lambda s: s.disturbed
            ),
        ],
        samples,
    ),
}
