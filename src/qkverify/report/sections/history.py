"""How times went over the runs that this machine's folder keeps: changes in words, charts, every case, and the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.history.change_points import FEWEST_RUNS, Floats
from qkverify.history.earlier_runs import PastRun
from qkverify.history.machine_drift import together
from qkverify.history.trends import Change, DetectedStep, Trend, findings_of, software_changes
from qkverify.report import timings
from qkverify.report.charts import ChartSeries, Point, run_chart
from qkverify.report.markdown import code, table
from qkverify.report.model import Report, in_order
from qkverify.report.templating import fill
from qkverify.timing import statistics

ORDER = 65
TITLE = "History"

MOST_CELLS = 120  # rows of the tables of all cells together; the rest are in the exports


class TrendCharts(NamedTuple):
    direction: str
    normalised: Markup
    measured: Markup


class DeviceHistory(NamedTuple):
    """One device and dtype; `rows` are its cells, those that changed most first."""

    device: str
    dtype: str
    charts: list[TrendCharts]
    rows: list[Trend]


class TrendRow(NamedTuple):
    """One run in words; `pace` on each device, as a ratio of times to the latest run."""

    number: int
    started: str
    commit: str
    pace: str
    control: str
    verdicts: str
    changes: str


def html(report: Report) -> Markup:
    trends = report.trends
    if len(trends.runs) < 2:
        return Markup("")
    places = _places(report)
    left_out = len(trends.cells) - sum(len(place.rows) for place in places)
    names = {"sentence": sentence, "confirmed": confirmed, "ratio": ratio, "units": units}
    said = {"standing": standing(report), "runs": rows(report), "left_behind": left_behind(report)}
    steps = findings_of(trends)
    return fill(
        "history.jinja",
        report=report,
        trends=trends,
        findings=steps,
        places=places,
        left_out=left_out,
        **said,
        **names,
    )


def standing(report: Report) -> str:
    """How many runs there are, and whether that is enough to judge."""
    trends = report.trends
    earlier = units.number_of(len(trends.runs) - 1, "earlier run")
    if trends.judged:
        return f"There are {earlier} on this machine."
    return (
        f"There is {earlier} on this machine, which shows no noise to hold a difference against: none is judged before "
        f"there are {FEWEST_RUNS - 1}."
    )


def sentence(report: Report, finding: DetectedStep) -> str:
    """ "torch_eager forward float32 on cpu is 1.31 × slower (1.25 .. 1.38)", and since when."""
    run, cell, change = report.trends.runs[finding.change.since], finding.cell, finding.change
    slower = change.ratio > 1
    low, high = (change.low, change.high) if slower else (1 / change.high, 1 / change.low)
    size = change.ratio if slower else 1 / change.ratio
    since = f"Since run {change.since + 1} ({moment(run)}, commit {commit(run)})"
    what = f"{cell.implementation} {cell.direction} {cell.dtype} on {cell.device}"
    word = "slower" if slower else "faster"
    return (
        f"{since} {what} is {units.ratio(size)} × {word} ({units.ratio(low)} .. {units.ratio(high)}): "
        f"{', '.join(finding.cases)}."
    )


def confirmed(finding: DetectedStep) -> str:
    return (
        "" if finding.change.runs_after > 1 else "Seen in one run so far: the next one confirms or clears it."
    )


def rows(report: Report) -> list[TrendRow]:
    """The runs, the latest first."""
    trends = report.trends
    of_runs = []
    for number, run in enumerate(trends.runs):
        before = trends.runs[number - 1] if number else None
        changes = software_changes(before, run) if before else []
        of_runs.append(
            TrendRow(
                number + 1, moment(run), commit(run), _pace(report, number), _control(run), _verdicts(run), ", ".join(changes)
            )
        )  # fmt: skip
    return of_runs[::-1]


def moment(run: PastRun) -> str:
    """The start of a run as people write it."""
    return run.start.started[:16].replace("T", " ")


def commit(run: PastRun) -> str:
    name = run.identity.get("commit")
    dirty = " and changes" if run.identity.get("dirty") == "yes" else ""
    return f"{str(name)[:7]}{dirty}" if name else "not known"


def left_behind(report: Report) -> list[str]:
    """Runs that are kept and not shown, with the reason."""
    trends = report.trends
    old = [f"{units.number_of(trends.older, 'older run')}: only the latest {len(trends.runs)} are shown"]
    return [
        *(old if trends.older else []),
        *(f"{moment(run)}, another machine: {why}" for run, why in trends.others),
    ]


def ratio(change: Change | None) -> str:
    if change is None:
        return ""
    edges = timings.edges(statistics.Interval(change.ratio, change.low, change.high))
    return f"{units.ratio(change.ratio)} {edges or f'({statistics.TOO_FEW})'}"


def _places(report: Report) -> list[DeviceHistory]:
    places = [
        (device, dtype, [t for t in report.trends.cells if (t.cell.device, t.cell.dtype) == (device, dtype)])
        for device, dtype in report.places
    ]
    kept = sorted(report.trends.cells, key=_size, reverse=True)[:MOST_CELLS]
    return [
        DeviceHistory(device, dtype, _charts(report, mine), [trend for trend in kept if trend in mine])
        for device, dtype, mine in places
        if mine
    ]


def _size(trend: Trend) -> float:
    """How much a cell deserves a row: steps first, then what changed most since the last run."""
    last = abs(math.log(trend.last.ratio)) if trend.last else 0.0
    return max([last, *(1 + abs(math.log(step.ratio)) for step in trend.steps)])


def _charts(report: Report, mine: Sequence[Trend]) -> list[TrendCharts]:
    directions = timings.in_directions({trend.cell.direction for trend in mine})
    return [
        TrendCharts(
            direction,
            _chart(report, [t for t in mine if t.cell.direction == direction], direction, normalised=True),
            _chart(report, [t for t in mine if t.cell.direction == direction], direction, normalised=False),
        )
        for direction in directions
    ]


def _chart(report: Report, mine: Sequence[Trend], direction: str, *, normalised: bool) -> Markup:
    """One line for each implementation: all its cases together, its first run at one."""
    series, said = [], []
    for name in report.implementations:
        trends = [trend for trend in mine if trend.cell.implementation == name]
        if not trends:
            continue
        line = together([trend.normalised if normalised else trend.seconds for trend in trends])
        marked = {step.since for trend in trends for step in trend.steps} if normalised else set()
        points = _points(report, name, line, marked)
        series.append(ChartSeries(name, report.colour(name), points, {"implementation": name}))
        said.append(f"{name} {units.ratio(points[-1].y)}")
    what = "Normalised time" if normalised else "Time as measured"
    alt = (
        f"{what} over {len(report.trends.runs)} runs, {direction}, the first 1. The latest: {', '.join(said)}"
    )
    return run_chart(series, len(report.trends.runs), alt=alt)


def _points(report: Report, name: str, line: Floats, marked: set[int]) -> list[Point]:
    """Marks with words on the ends and where a step is; the rest is line."""
    known = [index for index, value in enumerate(line) if math.isfinite(value)]
    ends = {known[0], known[-1]}

    def tip(index: int) -> str:
        run = report.trends.runs[index]
        return f"{name}, run {index + 1} ({moment(run)}, {commit(run)}): {units.ratio(float(line[index]))}"

    return [
        Point(index + 1, float(line[index]), tip(index) if index in ends | marked else "") for index in known
    ]


def _pace(report: Report, number: int) -> str:
    paces = [
        (device, pace[number]) for device, pace in report.trends.pace.items() if math.isfinite(pace[number])
    ]
    return ", ".join(
        f"{units.ratio(pace)}{f' on {device}' if len(paces) > 1 else ''}" for device, pace in paces
    )


def _control(run: PastRun) -> str:
    """The worst A/A control of a run: what a difference of nothing looked like."""
    worst = max(run.controls, key=lambda c: statistics.noise([c]) + abs(c.ratio - 1), default=None)
    if worst is None:
        return ""
    told = statistics.is_told(statistics.Interval(worst.ratio, worst.low, worst.high))
    return f"{worst.ratio:.3f} " + (
        f"({worst.low:.3f} .. {worst.high:.3f})" if told else f"({statistics.TOO_FEW})"
    )


def _verdicts(run: PastRun) -> str:
    if run.tally is None:
        return ""
    order = in_order(
        set(run.tally.outcomes), ("passed", "failed", "crashed", "timed out", "error", "finding")
    )
    said = [f"{units.count(run.tally.outcomes[outcome])} {outcome}" for outcome in order]
    return ", ".join(word for word in said if not word.endswith(("not offered", "unavailable")))


def markdown(report: Report) -> str:
    if len(report.trends.runs) < 2:
        return ""
    steps_found = findings_of(report.trends)
    steps = [f"- {sentence(report, step)} {confirmed(step)}".rstrip() for step in steps_found]
    nothing = ["No step was found."] if report.trends.judged and not steps_found else []
    header = ["run", "started", "commit", "pace", "A/A control", "verdicts", "changed"]
    runs = table(header, [[str(row.number), row.started, code(row.commit), *row[3:]] for row in rows(report)])
    behind = [f"- not shown: {line}" for line in left_behind(report)]
    parts = [standing(report), *nothing, "\n".join(steps), runs, "\n".join(behind)]
    return "\n\n".join(part for part in parts if part)
