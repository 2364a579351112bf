"""How time grows when the length doubles: the fitted exponent with its interval, beside theory and memory."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report import timings
from qkverify.report.charts import Reach, interval_chart
from qkverify.report.markdown import code, table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Timing

ORDER = 61
TITLE = "Scaling"

THEORY = 2.0  # every query meets every key


WORDS = ("as theory", "grows slower", "grows faster")


class ScalingRow(NamedTuple):
    """One implementation: the growth of its time, and the exponent of its peak memory where that was measured."""

    implementation: str
    growth: timings.TimeGrowth
    memory: float | None

    @property
    def interval(self) -> str:
        low, high = self.growth.low, self.growth.high
        return "" if low is None or high is None else f"{low:.2f} .. {high:.2f}"

    @property
    def word(self) -> str:
        """Where theory lies; nothing without an interval."""
        low, high = self.growth.low, self.growth.high
        if low is None or high is None:
            return ""
        return "grows faster" if low > THEORY else "grows slower" if high < THEORY else "as theory"

    @property
    def kept(self) -> str:
        """What the memory exponent says is kept: the nearer of the two that theory knows."""
        if self.memory is None:
            return ""
        return "the whole score matrix" if abs(self.memory - 2) < abs(self.memory - 1) else "tiles"


class ScalingPanel(NamedTuple):
    """One family of cases in one dtype and direction on one device."""

    name: str
    shape: str
    device: str
    dtype: str
    direction: str
    chart: Markup
    rows: list[ScalingRow]

    @property
    def conclusion(self) -> str:
        """How many grow as theory says, and how many not."""
        words = Counter(row.word or "without an interval" for row in self.rows)
        return ", ".join(f"{words[word]} {word}" for word in (*WORDS, "without an interval") if words[word])


def html(report: Report) -> Markup:
    drawn, short = panels(report), too_short(report)
    if not drawn and not short:
        return Markup("")
    return fill("scaling.jinja", panels=drawn, short=short, fewest=timings.FEWEST_LENGTHS, theory=THEORY)


def panels(report: Report) -> list[ScalingPanel]:
    series = [
        (family, mine[0], rows)
        for family, mine in _series(report)
        if (rows := [row for name in report.implementations if (row := _row(name, mine))])
    ]
    every = [row for _, _, rows in series for row in rows]
    span = (
        min((_ends(r)[0] for r in every), default=THEORY),
        max((_ends(r)[1] for r in every), default=THEORY),
    )
    return [
        ScalingPanel(
            f.name,
            f.shape,
            t.device,
            t.dtype,
            t.direction,
            _chart(report, rows, f"{f.name}, {t.dtype}, {t.direction}", span),
            rows,
        )
        for f, t, rows in series
    ]


def too_short(report: Report) -> int:
    """How many implementations were timed on a case of several lengths, and on too few of them to fit."""
    return sum(
        any(t.seconds for t in mine if t.implementation == name) and _row(name, mine) is None
        for _, mine in _series(report)
        for name in report.implementations
    )


def _series(report: Report) -> list[tuple[timings.Family, list[Timing]]]:
    return [
        (family, [t for t in family.timings if t.direction == direction])
        for device, dtype in report.places
        for family in timings.families(timings.at(report, device, dtype))[0]
        for direction in timings.directions(family.timings)
    ]


def _row(name: str, mine: list[Timing]) -> ScalingRow | None:
    of_implementation = [t for t in mine if t.implementation == name]
    growth = timings.growth(of_implementation)
    memory = timings.exponent(
        [t.sizes["K"] for t in of_implementation], [t.peak_bytes for t in of_implementation]
    )
    return growth and ScalingRow(name, growth, memory)


def _ends(row: ScalingRow) -> tuple[float, float]:
    """What the bar of a row covers: without an interval, the exponent alone."""
    g = row.growth
    return (g.exponent, g.exponent) if g.low is None or g.high is None else (g.low, g.high)


def _chart(report: Report, rows: list[ScalingRow], title: str, span: tuple[float, float]) -> Markup:
    reaches = [
        Reach(
            row.implementation,
            row.growth.exponent,
            *_ends(row),
            f"{row.growth.exponent:.2f}",
            _tip(row),
            {"implementation": row.implementation},
        )
        for row in rows
    ]
    alt = f"Exponent of time over length, {title}; theory says {THEORY:g}: " + ", ".join(
        f"{r.name} {r.words}" for r in reaches
    )
    return interval_chart(reaches, alt=alt, axis="exponent of time over length", expected=THEORY, span=span)


def _tip(row: ScalingRow) -> str:
    g = row.growth
    interval = f" ({row.interval})" if row.interval else ""
    return (
        f"{row.implementation}: length^{g.exponent:.2f}{interval} over {units.number_of(g.fitted, 'length')}, "
        f"{g.shortest} to {g.longest}; length^{g.last:.2f} over the last step"
    )


def markdown(report: Report) -> str:
    rows = [
        [
            p.name,
            p.device,
            p.dtype,
            p.direction,
            code(row.implementation),
            f"{row.growth.exponent:.2f}",
            row.interval,
            f"{row.growth.last:.2f}",
            "" if row.memory is None else f"{row.memory:.2f}",
        ]
        for p in panels(report)
        for row in p.rows
    ]
    header = (
        "case, device, dtype, direction, implementation, exponent of time, interval, last step, of memory"
    )
    return table(header.split(", "), rows) if rows else ""
