"""How fast: time, FLOP/s and the share of the measured roofline against length, and every case by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report import headline, timings
from qkverify.report.charts import ChartSeries, Point, line_chart
from qkverify.report.markdown import code, plain, table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Mark, Timing
from qkverify.timing import marks, statistics, untimed

ORDER = 50
TITLE = "Speed"

UNKNOWN = "no reason recorded"


class SpeedRow(NamedTuple):
    """One implementation on one case: a line for each direction in which it was to be timed."""

    implementation: str
    lines: dict[str, timings.TimingLine]

    @property
    def margin(self) -> str:
        return _largest([line.timing.margin for line in self.lines.values()], units.margin)

    @property
    def brief(self) -> str:
        """What is known against it, in a few words."""
        return marks.brief(self._marks)

    @property
    def known(self) -> str:
        """The same in full."""
        return "; ".join(map(marks.words, self._marks))

    @property
    def _marks(self) -> list[Mark]:
        by_place = {
            mark.folder or mark.sentence: mark for line in self.lines.values() for mark in line.timing.marks
        }
        return list(by_place.values())

    @property
    def memory(self) -> str:
        return _largest([line.timing.peak_bytes for line in self.lines.values()], units.size)


class SpeedTable(NamedTuple):
    """One case: rows by time of the first direction."""

    case: str
    shape: str
    directions: list[str]
    rows: list[SpeedRow]

    @property
    def timed(self) -> bool:
        return any(line.timed for row in self.rows for line in row.lines.values())

    @property
    def without_interval(self) -> bool:
        return any(line.without_interval for row in self.rows for line in row.lines.values())

    @property
    def measured_memory(self) -> bool:
        return any(row.memory for row in self.rows)

    @property
    def left_out(self) -> str:
        """Who could run here and was not timed, by direction: of such a case nobody is called the fastest."""
        by_direction = {
            direction: untimed.names(
                untimed.left_out(row.lines[direction].timing for row in self.rows if direction in row.lines)
            )
            for direction in self.directions
        }
        return "; ".join(f"{direction}: {names}" for direction, names in by_direction.items() if names)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why nothing was timed, each reason with the implementations that it holds for."""
        by_reason: dict[str, list[str]] = {}
        for row in self.rows:
            for reason in dict.fromkeys(line.timing.reason or UNKNOWN for line in row.lines.values()):
                by_reason.setdefault(reason, []).append(row.implementation)
        return by_reason


class SpeedCharts(NamedTuple):
    """Three charts of one family of cases in one direction; one without a series is empty. `least` and `nearest` are what they
    show: who takes the least time at the longest length, and who comes nearest to the roofline there."""

    title: str
    shape: str
    time: Markup
    rate: Markup
    share: Markup
    least: str
    nearest: str


class DeviceTimes(NamedTuple):
    """All that was timed on one device in one dtype."""

    device: str
    dtype: str
    ceilings: str
    charts: list[SpeedCharts]
    tables: list[SpeedTable]
    series_tables: list[SpeedTable]
    known: list[tuple[Markup, list[str]]]


def html(report: Report) -> Markup:
    places = [_place(report, device, dtype) for device, dtype in report.places]
    quiet = statistics.is_quiet(report.controls)
    return (
        fill("speed.jinja", report=report, places=places, quiet=quiet, control=headline.control(report))
        if places
        else Markup("")
    )


def _place(report: Report, device: str, dtype: str) -> DeviceTimes:
    here = timings.at(report, device, dtype)
    families, alone = timings.families(here)
    charts = [
        _charts(report, family, direction)
        for family in families
        for direction in timings.directions(family.timings)
        if any(t.seconds for t in family.timings if t.direction == direction)
    ]
    tables = [_table(report, here, case) for case in alone]
    rest = [_table(report, here, case) for family in families for case in family.cases]
    return DeviceTimes(
        device, dtype, _ceilings(report, device, dtype), charts, tables, rest, _known(report, here)
    )


def _known(report: Report, here: list[Timing]) -> list[tuple[Markup, list[str]]]:
    """What is known against who was timed, with links, and against whom."""
    by_words: dict[str, dict[str, None]] = {}
    for timing in here:
        for mark in timing.marks if timing.seconds else ():
            by_words.setdefault(marks.words(mark), {})[timing.implementation] = None
    return [(report.links.html(said), list(names)) for said, names in by_words.items()]


def _charts(report: Report, family: timings.Family, direction: str) -> SpeedCharts:
    mine = [t for t in family.timings if t.direction == direction]
    known = [numbers for t in mine if (numbers := timings.timed(t, report))]
    title = f"{family.name}, {direction}"

    def series(values: Iterable[float | None]) -> list[ChartSeries]:
        pairs = zip(known, values, strict=True)
        return timings.series(
            [(numbers.timing, value or 0.0, numbers.tip) for numbers, value in pairs], report
        )

    time, rate = series(numbers.seconds for numbers in known), series(numbers.rate for numbers in known)
    share = series(numbers.share for numbers in known)
    return SpeedCharts(
        title,
        family.shape,
        line_chart(time, alt=_alt("Time", title, known), unit=units.seconds),
        line_chart(rate, alt=_alt("Rate", title, known), unit=units.flops, ceiling=_roofline(known)),
        line_chart(share, alt=_alt("Share of the roofline", title, known), unit=units.percent, share=True),
        *_conclusions(known),
    )


def _conclusions(known: list[timings.TimingNumbers]) -> tuple[str, str]:
    """The titles of the charts: at the longest length, the least time and the highest share of the roofline."""
    longest = max(one.timing.sizes["K"] for one in known)
    there = [one for one in known if one.timing.sizes["K"] == longest]
    best = min(there, key=lambda one: one.seconds)
    least = f"{best.timing.implementation} takes the least at {longest:,}, {units.seconds(best.seconds)}"
    if len(there) == 1:
        least = f"only {best.timing.implementation} was timed at {longest:,}, {units.seconds(best.seconds)}"
    shares = [(one.share, one.timing.implementation) for one in there if one.share is not None]
    if not shares:
        return least, ""
    share, name = max(shares)
    return least, f"{name} comes nearest at {longest:,}, {units.percent(share)}"


def _roofline(known: list[timings.TimingNumbers]) -> list[Point]:
    """The highest rate that the measured ceilings allow at each length."""
    rates = {numbers.timing.sizes["K"]: numbers.rate / numbers.share for numbers in known if numbers.share}
    return [Point(length, rate, "measured roofline") for length, rate in rates.items()]


def _alt(what: str, title: str, known: list[timings.TimingNumbers]) -> str:
    """The chart in a sentence: what stands at its right end."""
    longest = max(numbers.timing.sizes["K"] for numbers in known)
    ends = sorted((o.seconds, o.timing.implementation) for o in known if o.timing.sizes["K"] == longest)
    said = ", ".join(f"{name} {units.seconds(seconds)}" for seconds, name in ends)
    return f"{what} against length, {title}. At {longest}: {said}"


def _table(report: Report, here: list[Timing], case: str) -> SpeedTable:
    mine = [t for t in here if t.case == case]
    directions = timings.directions(mine)
    rows: dict[str, dict[str, timings.TimingLine]] = {}
    for direction in directions:
        for line in timings.lines([t for t in mine if t.direction == direction], report):
            rows.setdefault(line.timing.implementation, {})[direction] = line
    return SpeedTable(
        case, timings.shape(mine[0]), directions, [SpeedRow(name, lines) for name, lines in rows.items()]
    )


def _largest(values: Iterable[float | None], unit: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return unit(max(known)) if known else ""


def _ceilings(report: Report, device: str, dtype: str) -> str:
    """What this device was seen to reach, in words."""
    words = [
        f"matrix product {units.flops(c.rate)}"
        for c in report.ceilings
        if (c.device, c.dtype, c.what) == (device, dtype, "matmul")
    ]
    words += [
        f"copy {units.bandwidth(c.rate)}" for c in report.ceilings if (c.device, c.what) == (device, "copy")
    ]
    return ", ".join(words)


def markdown(report: Report) -> str:
    rows, reasons = [], []
    for device, dtype in report.places:
        here = timings.at(report, device, dtype)
        for case, direction in dict.fromkeys((t.case, t.direction) for t in here):
            mine = [t for t in here if (t.case, t.direction) == (case, direction)]
            where = [case, timings.shape(mine[0]), device, dtype, direction]
            ran = [numbers for t in mine if (numbers := timings.timed(t, report))]
            if ran:
                rows.append([*where, *_best(ran), untimed.names(untimed.left_out(mine))])
            else:
                reasons.append(f"- {case}, {dtype} on {device}, {direction}: {_why(mine)}")
    header = (
        "case, shape, device, dtype, direction, fastest timed, time, rate, of the roofline, margin, left out"
    )
    fastest = [table(header.split(", "), rows)] if rows else []
    return "\n\n".join([*fastest, "Not timed:\n\n" + "\n".join(reasons)] if reasons else fastest)


def _best(ran: list[timings.TimingNumbers]) -> list[str]:
    """The fastest of a case in words."""
    fastest = min(ran, key=lambda numbers: numbers.seconds)
    share = "" if fastest.share is None else units.percent(fastest.share)
    margin, known = units.margin(fastest.timing.margin), marks.brief(fastest.timing.marks)
    name = code(fastest.timing.implementation) + (f" ({known})" if known else "")
    return [name, units.seconds(fastest.seconds), units.flops(fastest.rate), share, margin]


def _why(mine: list[Timing]) -> str:
    return "; ".join(dict.fromkeys(plain(t.reason or UNKNOWN) for t in mine))
