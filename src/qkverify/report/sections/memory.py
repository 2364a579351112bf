"""How much memory a call needs above its inputs, and how that grows with length."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report import timings
from qkverify.report.charts import line_chart
from qkverify.report.markdown import code, table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Timing

ORDER = 60
TITLE = "Memory"


class MemoryGrowth(NamedTuple):
    """One implementation: its peak at the longest length, and the exponent of the fit over lengths."""

    implementation: str
    length: int
    peak_bytes: int
    exponent: float | None


class MemoryPanel(NamedTuple):
    """One chart, of one family of cases on one device in one dtype and direction."""

    device: str
    dtype: str
    direction: str
    name: str
    shape: str
    chart: Markup
    growth: list[MemoryGrowth]

    @property
    def conclusion(self) -> str:
        """Who needs the least at the longest length, and who the most."""
        longest = max(one.length for one in self.growth)
        there = sorted((one.peak_bytes, one.implementation) for one in self.growth if one.length == longest)
        (least, first), (most, last) = there[0], there[-1]
        said = f"{first} needs the least at {longest:,}, {units.size(least)}"
        return said + (f"; {last} the most, {units.size(most)}" if last != first else "")


def html(report: Report) -> Markup:
    drawn = panels(report)
    groups = {
        key: [p for p in drawn if (p.name, p.shape) == key]
        for key in dict.fromkeys((p.name, p.shape) for p in drawn)
    }
    return fill("memory.jinja", panels=drawn, groups=groups) if drawn else Markup("")


def panels(report: Report) -> list[MemoryPanel]:
    """Where a peak was measured at two lengths or more."""
    drawn = []
    for device, dtype in report.places:
        for family in timings.families(timings.at(report, device, dtype))[0]:
            for direction in timings.directions(family.timings):
                mine = [t for t in family.timings if t.direction == direction and t.peak_bytes]
                if len({t.sizes["K"] for t in mine}) > 1:
                    drawn.append(_panel(report, family, direction, mine))
    return drawn


def _panel(report: Report, family: timings.Family, direction: str, mine: list[Timing]) -> MemoryPanel:
    growth = [
        _growth(name, [t for t in mine if t.implementation == name])
        for name in report.implementations
        if any(t.implementation == name for t in mine)
    ]
    said = ", ".join(f"{g.implementation} {units.size(g.peak_bytes)}" for g in growth)
    drawn = timings.series([(t, t.peak_bytes or 0, _tip(t)) for t in mine], report)
    alt = f"Peak memory against length, {family.name}, {direction}. At the longest: {said}"
    chart = line_chart(drawn, alt=alt, unit=units.size, base=2)
    return MemoryPanel(mine[0].device, mine[0].dtype, direction, family.name, family.shape, chart, growth)


def _tip(timing: Timing) -> str:
    return (
        f"{timing.implementation}, {timing.sizes['K']}: {units.size(timing.peak_bytes or 0)} above its inputs"
    )


def _growth(name: str, mine: list[Timing]) -> MemoryGrowth:
    longest = max(mine, key=lambda t: t.sizes["K"])
    fit = timings.exponent([t.sizes["K"] for t in mine], [t.peak_bytes for t in mine])
    return MemoryGrowth(name, longest.sizes["K"], longest.peak_bytes or 0, fit)


def markdown(report: Report) -> str:
    rows = [
        [
            p.name,
            p.device,
            p.dtype,
            p.direction,
            code(g.implementation),
            str(g.length),
            units.size(g.peak_bytes),
            "" if g.exponent is None else f"length^{g.exponent:.1f}",
        ]
        for p in panels(report)
        for g in p.growth
    ]
    header = ["case", "device", "dtype", "direction", "implementation", "length", "peak", "growth"]
    return table(header, rows) if rows else ""
