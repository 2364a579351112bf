"""How fast: time, FLOP/s and the share of the measured roofline against length, and every case by itself."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from qkverify import statistics
from qkverify.report import timings, units
from qkverify.report.charts import Point, line_chart
from qkverify.report.markdown import code, table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Timing

ORDER = 50
TITLE = "Speed"


class Table(NamedTuple):
    """One case in one direction."""

    case: str
    shape: str
    direction: str
    lines: list[timings.Line]


class Charts(NamedTuple):
    """Three charts of one family of cases in one direction."""

    title: str
    shape: str
    time: Markup
    rate: Markup
    share: Markup | None


class Place(NamedTuple):
    """All that was timed on one device in one dtype."""

    device: str
    dtype: str
    ceilings: str
    charts: list[Charts]
    tables: list[Table]
    series_tables: list[Table]


def html(report: Report) -> Markup:
    places = [_place(report, device, dtype) for device, dtype in report.places]
    quiet = statistics.is_quiet(report.controls)
    return fill("speed.jinja", report=report, places=places, quiet=quiet) if places else Markup("")


def _place(report: Report, device: str, dtype: str) -> Place:
    here = timings.at(report, device, dtype)
    families, alone = timings.families(here)
    charts = [_charts(report, family, direction) for family in families for direction in timings.directions(family.timings)
              if any(t.seconds for t in family.timings if t.direction == direction)]  # fmt: skip
    tables = [_table(report, here, case, direction) for case in alone for direction in timings.directions(here)]
    rest = [_table(report, here, case, direction) for family in families for case in family.cases
            for direction in timings.directions(here)]  # fmt: skip
    return Place(device, dtype, _ceilings(report, device, dtype), charts,
                 [t for t in tables if t.lines], [t for t in rest if t.lines])  # fmt: skip


def _charts(report: Report, family: timings.Family, direction: str) -> Charts:
    mine = [t for t in family.timings if t.direction == direction]
    numbers = {id(t): one for t in mine if (one := timings.timed(t, report))}
    known = [t for t in mine if id(t) in numbers]
    title = f"{family.name}, {direction}"

    def draw(what: str, of: str, **options: object) -> Markup:
        drawn = timings.series(known, report, lambda t: getattr(numbers[id(t)], of), lambda t: numbers[id(t)].tip)
        return line_chart(drawn, alt=_alt(what, title, known, numbers), **options)  # type: ignore[arg-type]

    shares = [one.share for one in numbers.values() if one.share is not None]
    return Charts(
        title,
        family.shape,
        draw("Time", "seconds", unit=units.seconds),
        draw("Rate", "rate", unit=units.flops, ceiling=_roofline(known, numbers)),
        draw("Share of the roofline", "share", unit=units.percent, share=True) if shares else None,
    )


def _roofline(known: list[Timing], numbers: dict[int, timings.Timed]) -> list[Point]:
    """The highest rate that the measured ceilings allow at each length."""
    points = {}
    for t in known:
        one = numbers[id(t)]
        if one.share:
            rate = one.rate / one.share
            points[t.sizes["K"]] = Point(t.sizes["K"], rate, f"measured roofline: {units.flops(rate)}")
    return list(points.values())


def _alt(what: str, title: str, known: list[Timing], numbers: dict[int, timings.Timed]) -> str:
    """The chart in a sentence: what stands at its right end."""
    longest = max(t.sizes["K"] for t in known)
    ends = sorted((numbers[id(t)].seconds, t.implementation) for t in known if t.sizes["K"] == longest)
    said = ", ".join(f"{name} {units.seconds(seconds)}" for seconds, name in ends)
    return f"{what} against length, {title}. At {longest}: {said}"


def _table(report: Report, here: list[Timing], case: str, direction: str) -> Table:
    mine = [t for t in here if (t.case, t.direction) == (case, direction)]
    return Table(case, timings.shape(mine[0]) if mine else "", direction, timings.lines(mine, report))


def _ceilings(report: Report, device: str, dtype: str) -> str:
    """What this device was seen to reach, in words."""
    words = [f"matrix product {units.flops(c.rate)}" for c in report.ceilings if (c.device, c.dtype, c.what) == (device, dtype, "matmul")]
    words += [f"copy {units.bandwidth(c.rate)}" for c in report.ceilings if (c.device, c.what) == (device, "copy")]
    return ", ".join(words)


def markdown(report: Report) -> str:
    rows = []
    for device, dtype in report.places:
        here = timings.at(report, device, dtype)
        for case in dict.fromkeys(t.case for t in here):
            for direction in timings.directions(here):
                rows += _best(_table(report, here, case, direction), device, dtype)
    header = ["case", "shape", "device", "dtype", "direction", "fastest", "time", "rate", "of the roofline", "margin"]
    return table(header, rows) if rows else ""


def _best(found: Table, device: str, dtype: str) -> list[list[str]]:
    """The fastest of a case as a row, or why nothing was timed."""
    if not found.lines:
        return []
    first = found.lines[0]
    where = [found.case, found.shape, device, dtype, found.direction]
    if first.timed is None:
        return [[*where, f"not timed: {first.timing.reason or 'no reason recorded'}", "", "", "", ""]]
    one = first.timed
    return [[*where, code(first.timing.implementation), units.seconds(one.seconds), units.flops(one.rate),
             "" if one.share is None else units.percent(one.share), units.margin(first.timing.margin)]]  # fmt: skip
