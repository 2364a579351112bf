"""What accuracy costs in time: every implementation of a case by both, and those that no other one beats in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report import timings
from qkverify.report.charts import ChartSeries, Point, scatter_chart
from qkverify.report.markdown import code, table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Timing
from qkverify.timing import statistics, untimed

ORDER = 63
TITLE = "Speed and accuracy"

MOST_CHARTS = 3  # of one device and dtype; the table has every case
RATIO = "error against a textbook in the same dtype"
MARGIN = "margin: error as a share of the bound"


class Standing(NamedTuple):
    """One implementation on one case: seconds of a call, its error in two digits, and whether it stands on the front."""

    implementation: str
    seconds: float
    error: float
    front: bool


class TradeoffCase(NamedTuple):
    """All implementations of one case, fastest first; `measure` says what their error is."""

    case: str
    shape: str
    device: str
    dtype: str
    measure: str
    standings: list[Standing]
    left_out: str = ""  # who could run here and was not timed

    @property
    def front(self) -> list[Standing]:
        return [s for s in self.standings if s.front]

    @property
    def sentence(self) -> str:
        """The front in words: who is fastest, who is nearest to exact, and who is between."""
        first, *between = self.front
        said = f"{first.implementation} ({units.seconds(first.seconds)}, {words(self)(first.error)})"
        if not between:
            return f"{said} is both the fastest{self.timed} and the nearest to exact"
        last = between.pop()
        middle = "".join(f", then {s.implementation}" for s in between)
        end = f"{last.implementation} ({units.seconds(last.seconds)}, {words(self)(last.error)})"
        return f"{said} is the fastest{self.timed}{middle}; {end} the nearest to exact"

    @property
    def timed(self) -> str:
        return f" of those timed (without {self.left_out})" if self.left_out else ""


def html(report: Report) -> Markup:
    timed = cases(report)
    if not timed:
        return Markup("")
    drawn = [(case, _chart(report, case)) for case in chosen(report, timed)]
    return fill(
        "tradeoff.jinja", cases=timed, drawn=drawn, words=words, quiet=statistics.is_quiet(report.controls)
    )


def words(case: TradeoffCase) -> Callable[[float], str]:
    """How an error of this case is written: "0.35 ×" of a textbook's, or a margin."""
    return (lambda value: f"{value:.2g} ×") if case.measure == RATIO else units.margin


def cases(report: Report) -> list[TradeoffCase]:
    """The cases, forward, on which two implementations or more were timed and have an error."""
    comparable = []
    for device, dtype in report.places:
        here = [t for t in timings.at(report, device, dtype) if t.direction == "forward" and t.seconds]
        for name in dict.fromkeys(t.case for t in here):
            every = [
                t for t in timings.at(report, device, dtype) if (t.case, t.direction) == (name, "forward")
            ]
            case = _case(report, [t for t in here if t.case == name], untimed.names(untimed.left_out(every)))
            if len(case.standings) > 1:
                comparable.append(case)
    return comparable


def chosen(report: Report, candidates: list[TradeoffCase]) -> list[TradeoffCase]:
    """What is drawn: of cases that differ in length only the longest, and at most MOST_CHARTS of one place."""
    drawn: list[TradeoffCase] = []
    for device, dtype in report.places:
        families, alone = timings.families(timings.at(report, device, dtype))
        here = [c for c in candidates if (c.device, c.dtype) == (device, dtype)]
        last = {
            max((c.case for c in here if c.case in f.cases), key=f.cases.index, default="") for f in families
        }
        drawn += [c for c in here if c.case in last or c.case in alone][:MOST_CHARTS]
    return drawn


def _case(report: Report, mine: list[Timing], left_out: str) -> TradeoffCase:
    t = mine[0]
    ratios = {
        a.implementation: a.ratio for a in report.accuracy if (a.device, a.dtype) == (t.device, t.dtype)
    }
    by_ratio = sum(bool(ratios.get(t.implementation)) for t in mine) > 1
    known = []
    for timing in mine:
        timed = timings.timed(timing, report)
        error = ratios.get(timing.implementation) if by_ratio else timing.margin
        if timed and error:  # none, or none at all: a logarithmic axis has no place for it
            known.append(
                (timed.seconds, float(f"{error:.2g}"), timing.implementation)
            )  # what is read is what is judged
    known.sort()
    standings = [
        Standing(name, s, e, not any(_beats(other, (s, e)) for other in known)) for s, e, name in known
    ]
    measure = RATIO if by_ratio else MARGIN
    return TradeoffCase(t.case, timings.shape(t), t.device, t.dtype, measure, standings, left_out)


def _beats(other: tuple[float, float, str], point: tuple[float, float]) -> bool:
    """At least as fast and as accurate, and better in one of them."""
    return other[0] <= point[0] and other[1] <= point[1] and other[:2] != point


def _chart(report: Report, case: TradeoffCase) -> Markup:
    dots = [
        ChartSeries(
            s.implementation,
            report.colour(s.implementation),
            [Point(s.seconds, s.error, _tip(case, s))],
            {"implementation": s.implementation},
        )
        for s in case.standings
    ]
    alt = f"Time against {case.measure}, {case.case}, {case.dtype}. {case.sentence}"
    front = [Point(s.seconds, s.error, "") for s in case.front]
    return scatter_chart(
        dots, front, alt=alt, x_unit=units.seconds, y_unit=words(case), x_label="time of one call, forward"
    )


def _tip(case: TradeoffCase, standing: Standing) -> str:
    place = "on the front" if standing.front else "another one is at least as fast and as accurate"
    return f"{standing.implementation}: {units.seconds(standing.seconds)}, {words(case)(standing.error)}; {place}"


def markdown(report: Report) -> str:
    rows = [
        [c.case, c.device, c.dtype, code(s.implementation), units.seconds(s.seconds), words(c)(s.error)]
        for c in cases(report)
        for s in c.front
    ]
    noisy = (
        "" if statistics.is_quiet(report.controls) else "The machine was too noisy to order what is near. "
    )
    note = (
        noisy
        + "Implementations that no other one beats in both; × is the error against a textbook in the same dtype."
    )
    header = ["case", "device", "dtype", "on the front", "time", "error"]
    return f"{note}\n\n{table(header, rows)}" if rows else ""
