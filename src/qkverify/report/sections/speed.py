"""How fast: time, FLOP/s and the share of the measured roofline against length, and every case by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


class Row(NamedTuple):
    """One implementation on one case: a line for each direction in which it was to be timed."""

    implementation: str
    lines: dict[str, timings.Line]

    @property
    def margin(self) -> str:
        return _largest([line.timing.margin for line in self.lines.values()], units.margin)

    @property
    def memory(self) -> str:
        return _largest([line.timing.peak_bytes for line in self.lines.values()], units.size)


class Table(NamedTuple):
    """One case: rows by time of the first direction."""

    case: str
    shape: str
    directions: list[str]
    rows: list[Row]


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
    tables = [_table(report, here, case) for case in alone]
    rest = [_table(report, here, case) for family in families for case in family.cases]
    return Place(device, dtype, _ceilings(report, device, dtype), charts, tables, rest)


def _charts(report: Report, family: timings.Family, direction: str) -> Charts:
    mine = [t for t in family.timings if t.direction == direction]
    numbers = {id(t): one for t in mine if (one := timings.timed(t, report))}
    known = [t for t in mine if id(t) in numbers]
    title = f"{family.name}, {direction}"

    def draw(what: str, of: str, **options: object) -> Markup:
        drawn = timings.series(known, report, lambda t: getattr(numbers[id(t)], of), lambda t: numbers[id(t)].tip)
        return line_chart(drawn, alt=_alt(what, title, known, numbers), room=timings.room(report), **options)  # type: ignore[arg-type]

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
            points[t.sizes["K"]] = Point(t.sizes["K"], rate, "measured roofline")
    return list(points.values())


def _alt(what: str, title: str, known: list[Timing], numbers: dict[int, timings.Timed]) -> str:
    """The chart in a sentence: what stands at its right end."""
    longest = max(t.sizes["K"] for t in known)
    ends = sorted((numbers[id(t)].seconds, t.implementation) for t in known if t.sizes["K"] == longest)
    said = ", ".join(f"{name} {units.seconds(seconds)}" for seconds, name in ends)
    return f"{what} against length, {title}. At {longest}: {said}"


def _table(report: Report, here: list[Timing], case: str) -> Table:
    mine = [t for t in here if t.case == case]
    directions = timings.directions(mine)
    rows: dict[str, dict[str, timings.Line]] = {}
    for direction in directions:
        for line in timings.lines([t for t in mine if t.direction == direction], report):
            rows.setdefault(line.timing.implementation, {})[direction] = line
    return Table(case, timings.shape(mine[0]), directions, [Row(name, lines) for name, lines in rows.items()])


def _largest(values: Iterable[float | None], unit: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return unit(max(known)) if known else ""


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
            found = _table(report, here, case)
            rows += [_best(found, direction, device, dtype) for direction in found.directions]
    header = ["case", "shape", "device", "dtype", "direction", "fastest", "time", "rate", "of the roofline", "margin"]
    return table(header, rows) if rows else ""


def _best(found: Table, direction: str, device: str, dtype: str) -> list[str]:
    """The fastest of a case as a row, or why nothing was timed."""
    where = [found.case, found.shape, device, dtype, direction]
    lines = [row.lines[direction] for row in found.rows if direction in row.lines]
    first = min((line for line in lines if line.timed), key=lambda line: line.timed.seconds if line.timed else 0.0, default=None)
    if first is None or first.timed is None:
        reasons = dict.fromkeys(line.timing.reason or "no reason recorded" for line in lines)
        return [*where, f"not timed: {'; '.join(reasons)}", "", "", "", ""]
    one = first.timed
    return [*where, code(first.timing.implementation), units.seconds(one.seconds), units.flops(one.rate),
            "" if one.share is None else units.percent(one.share), units.margin(first.timing.margin)]  # fmt: skip
