"""What types of layers cost: measured and counted exponents beside theory, sequential steps and path lengths."""

from __future__ import annotations

import math
from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report.charts import ChartSeries, Point, line_chart
from qkverify.report.markdown import table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Complexity, Travel
from qkverify.timing.complexity import fitting

ORDER = 62
TITLE = "How cost grows"
TOGETHER = {"n": "positions", "d": "features"}  # charts of their own, all layers in each; the rest shares one
LONGER = "With the same d, self-attention takes longer than another layer"
OTHERS = "neighbours k or r, side of a matrix product"


class LayerPlace(NamedTuple):
    """Where the layers were timed."""

    implementation: str
    device: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.implementation} on {self.device}"


class ExponentLine(NamedTuple):
    """One variable of one layer: the exponent in theory, counted, and at every place the record and its fit."""

    variable: str
    theory: int
    counted: float | None
    measured: list[tuple[LayerPlace, Complexity | None, fitting.FittedExponent | None]]


class Block(NamedTuple):
    """One layer: its formula with the constant factor of this code, its lines, and how a signal travels."""

    layer: str
    formula: str
    lines: list[ExponentLine]
    travel: Travel | None


class Crossing(NamedTuple):
    """The lengths from which self-attention takes longer than a layer, and from which it multiplies more."""

    layer: str
    measured: float
    counted: float

    def __str__(self) -> str:
        return f"{self.layer} {_from(self.measured)} (by the counts {_from(self.counted)})"


class Figure(NamedTuple):
    """One chart, of one variable at one place."""

    place: LayerPlace
    title: str
    chart: Markup


def html(report: Report) -> Markup:
    if not report.complexity:
        return Markup("")
    here = places(report)
    figures = [
        chart
        for place in here
        for title, variables, label in _charts(report)
        if (chart := figure(report, place, title, variables, label))
    ]
    notes = {
        "threads": sorted({r.threads or 0 for r in report.complexity if r.seconds}),
        "thread_clock": any(r.clock == "thread" for r in report.complexity),
    }
    meeting = [(place, lengths) for place in here if (lengths := crossings(report, place))]
    names = {"blocks": blocks(report), "places": here, "figures": figures, "at_fixed": at_fixed}
    return fill("complexity.jinja", meeting=meeting, longer=LONGER, **names, **notes)


def places(report: Report) -> list[LayerPlace]:
    return list(dict.fromkeys(_place(record) for record in report.complexity))


def blocks(report: Report) -> list[Block]:
    """One for each layer, in the order of the records."""
    drawn = []
    for layer in layers(report):
        mine = [r for r in report.complexity if r.layer == layer]
        lines = [
            _line(report, [r for r in mine if r.variable == v])
            for v in dict.fromkeys(r.variable for r in mine)
        ]
        factor = f"{mine[0].factor} " if mine[0].factor > 1 else ""
        drawn.append(Block(layer, factor + mine[0].formula, lines, report.travels.get(layer)))
    return drawn


def layers(report: Report) -> list[str]:
    return list(dict.fromkeys(r.layer for r in report.complexity))


def figure(
    report: Report, place: LayerPlace, title: str, variables: tuple[str, ...], label: str
) -> Figure | None:
    """Time against a variable, a line for every layer, the slope of theory dashed along the sizes that were fitted."""
    series = [
        _series(record, layers(report).index(record.layer), named=record.variable not in TOGETHER)
        for record in report.complexity
        if _place(record) == place and record.variable in variables and any(record.seconds)
    ]
    if not series:
        return None
    said = ", ".join(f"{s.label} {units.seconds(s.points[-1].y)} at {s.points[-1].x:g}" for s in series)
    alt = f"Time against {label}, {place}. At the largest: {said}"
    chart = line_chart(series, alt=alt, unit=units.seconds, x_label=label)
    return Figure(place, title, chart)


def crossings(report: Report, place: LayerPlace) -> list[Crossing]:
    """Where self-attention begins to take longer than another layer of the same d: the source's argument for it, measured."""
    over_n = {r.layer: r for r in report.complexity if _place(r) == place and r.variable == "n"}
    of_attention = over_n.pop("self-attention", None)
    if of_attention is None:
        return []
    meetings = [
        Crossing(
            name, fitting.crossing(of_attention, other), fitting.crossing(of_attention, other, counts=True)
        )
        for name, other in over_n.items()
        if other.fixed.get("d") == of_attention.fixed.get("d")
    ]
    return [meeting for meeting in meetings if not math.isnan(meeting.measured)]


def at_fixed(record: Complexity) -> str:
    """The variables that were held still: "d = 128, k = 3"."""
    return ", ".join(f"{name} = {size}" for name, size in record.fixed.items())


def _series(record: Complexity, colour: int, *, named: bool) -> ChartSeries:
    best = {n: min(times) for n, times in zip(record.sizes, record.seconds, strict=True) if times}
    points = [
        Point(n, s, f"{record.layer}, {record.variable} {n}: {units.seconds(s)}") for n, s in best.items()
    ]
    fit, guide = fitting.growth(record), list[tuple[float, float]]()
    if fit is not None:
        guide = [(n, best[fit.last] * (n / fit.last) ** record.theory) for n in (fit.first, fit.last)]
    label = f"{record.layer.split()[0]} {record.variable}" if named else record.layer
    return ChartSeries(label, colour, points, {"device": record.device, "dtype": record.dtype}, guide)


def _line(report: Report, records: list[Complexity]) -> ExponentLine:
    by_place = {_place(record): record for record in records}
    measured = [
        (place, by_place.get(place), fitting.growth(by_place[place]) if place in by_place else None)
        for place in places(report)
    ]
    counted = next((c for c in map(fitting.counted, records) if c is not None), None)
    return ExponentLine(records[0].variable, records[0].theory, counted, measured)


def _place(record: Complexity) -> LayerPlace:
    return LayerPlace(record.implementation, record.device, record.dtype)


def _charts(report: Report) -> list[tuple[str, tuple[str, ...], str]]:
    """The charts of a place: title, variables, label of the axis."""
    others = tuple(dict.fromkeys(r.variable for r in report.complexity if r.variable not in TOGETHER))
    return [*((name, (name,), word) for name, word in TOGETHER.items()), (", ".join(others), others, OTHERS)]


def markdown(report: Report) -> str:
    rows = [
        [block.layer, block.formula, line.variable, str(line.theory), _exponent(line.counted)]
        + [_said(record, fit) for _, record, fit in line.measured]
        + [_travelled(block.travel, "steps"), _travelled(block.travel, "path")]
        for block in blocks(report)
        for line in block.lines
    ]
    heads = ["layer", "multiply-adds", "variable", "theory", "counted", *(str(p) for p in places(report))]
    meeting = [
        f"{LONGER}, {place}: {'; '.join(map(str, lengths))}."
        for place in places(report)
        if (lengths := crossings(report, place))
    ]
    text = table([*heads, "sequential steps", "path length"], rows)
    return "\n\n".join([text, *meeting]) if rows else ""


def _from(length: float) -> str:
    """A crossing in words."""
    return {0.0: "at every length", math.inf: "at no length"}.get(length, f"from n = {length:.0f}")


def _exponent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _said(record: Complexity | None, fit: fitting.FittedExponent | None) -> str:
    if record is None or fit is None:
        return "" if record is None else f"not timed: {record.reason}"
    return f"{fit.exponent:.2f} ({fit.low:.2f} .. {fit.high:.2f}), {fit.word(record.theory)}"


def _travelled(travel: Travel | None, what: str) -> str:
    """Theory, and what was traced at every length: "O(n): 16, 32 at n = 16, 32"."""
    theory, traced = (
        ("", []) if travel is None else (getattr(travel, f"{what}_theory"), getattr(travel, what))
    )
    if not theory or travel is None:
        return ""
    return f"O({theory}): {', '.join(map(str, traced))} at n = {', '.join(map(str, travel.lengths))}"
