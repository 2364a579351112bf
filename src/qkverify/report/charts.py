"""The charts of the page: lines against length, margins as a strip under the line at one, intervals, scatters.

All are small multiples: drawn 400 units wide, about one to one on a phone, and set side by side where there
is room. A mark carries its tooltip as `data-tip`, its series carries the names that the page's filters go by.
Colour is never the only sign: every series has a mark of its own shape, and both stand before its name in the
legend under the plot, whose order is that of the right ends of the lines, from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from qkverify import units
from qkverify.report.svg import COLOURS, MARKS, Scale, element, even, path, powers

WIDTH = 400.0
HEIGHT = 268.0
TOP, BOTTOM, RIGHT = 14.0, 44.0, 12.0
LEGEND_PITCH, LEGEND_COLUMNS = 18.0, 2
CHARACTER, BOLD_CHARACTER = 7.5, 8.1  # mean widths in 13 px type, a little more than any system font has
ROW_PITCH, ROW_NAME, ROW_VALUE = (
    24.0,
    176.0,
    78.0,
)  # of charts with a row for each name: its height, and room beside the plot
LONGEST_LABEL = 20
ROUND_STEPS = (0.5, 1, 2, 5, 10, 20, 50, 100)  # between the ticks of an interval chart
MOST_STEPS = 5


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class ChartSeries:
    """A line: `label` stands in the legend, `colour` numbers its colour and mark, `data` is for the filters. `guide` is a dashed
    line beside it, what it is to be held against."""

    label: str
    colour: int
    points: Sequence[Point]
    data: dict[str, str] = field(default_factory=dict)
    guide: Sequence[tuple[float, float]] = ()


PLAIN = 0  # the colour of charts whose rows are named: there it would say nothing


@dataclass(frozen=True)
class Reach:
    """One value with its interval (none: the same value three times); `words` stand beside it."""

    name: str
    middle: float
    low: float
    high: float
    words: str
    tip: str
    data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Strip:
    """The margins of one row: `margins` of the laws that hold, `beyond` those over the line (law, margin)."""

    name: str
    margins: Sequence[float]
    value: str
    tip: str
    beyond: int = 0
    data: dict[str, str] = field(default_factory=dict)


def line_chart(
    series: Sequence[ChartSeries],
    *,
    alt: str,
    unit: Callable[[float], str],
    x_label: str = "length",
    base: int = 10,
    ceiling: Sequence[Point] = (),
    share: bool = False,
) -> Markup:
    """Lines over a logarithmic x axis; nothing without a series.

    `share` draws y linearly, from 0 to a round share above the largest, else it is logarithmic with powers of
    `base`. `ceiling` is a further line, dashed, that the others are to be held against.
    """
    if not series:
        return Markup("")
    xs = sorted({p.x for s in series for p in s.points})
    ys = [p.y for s in series for p in s.points] + [p.y for p in ceiling]
    ys += [value for s in series for _, value in s.guide]
    shares = even(0.0, max(ys)) if share else []
    low, high, ticks = (0.0, shares[-1], shares) if share else powers(ys, base)
    names = [units.tick(unit, t) for t in ticks]
    left = 12 + CHARACTER * max(map(len, names))
    x = Scale(xs[0], max(xs[-1], xs[0] * 1.01), left, WIDTH - RIGHT, logarithmic=True)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic=not share)
    parts = [
        *(_gridline(x, y(t), name) for t, name in zip(ticks, names, strict=True)),
        *(_x_tick(x(value), f"{value:g}") for value in _thinned(xs, x)),
        element("text", x_label, x=(x.start + x.stop) / 2, y=HEIGHT - 3, class_="axis", text_anchor="middle"),
    ]
    if ceiling:
        line = [(x(p.x), y(p.y)) for p in ceiling]
        parts += [
            element("path", d=path(line), class_="ceiling"),
            element(
                "text", ceiling[0].tip, x=line[-1][0], y=line[-1][1] - 6, class_="axis", text_anchor="end"
            ),
        ]
    return _figure([*parts, *_lines(series, x, y)], _height(series), alt)


def run_chart(series: Sequence[ChartSeries], runs: int, *, alt: str) -> Markup:
    """Ratios over runs, 1 .. `runs` at equal distances, around a line at one; only points with a tooltip get a mark."""
    ys = [p.y for s in series for p in s.points]
    ticks = even(min([0.95, *ys]), max([1.05, *ys]))  # a few per cent must not fill the chart
    names = [f"{tick:.4g}" for tick in ticks]
    left = 12 + CHARACTER * max(map(len, names))
    x = Scale(1, max(runs, 2), left, WIDTH - RIGHT)
    y = Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        *(_gridline(x, y(tick), name) for tick, name in zip(ticks, names, strict=True)),
        *(_x_tick(x(run), f"{run:g}") for run in _thinned(range(1, runs + 1), x)),
        element("text", "run", x=(x.start + x.stop) / 2, y=HEIGHT - 3, class_="axis", text_anchor="middle"),
        element("path", d=path([(x.start, y(1)), (x.stop, y(1))]), class_="ceiling"),
        *_lines(series, x, y),
    ]
    return _figure(parts, _height(series), alt)


def strip_chart(strips: Sequence[Strip], *, alt: str, axis: str) -> Markup:
    """One row per strip: a tick for every margin from 0 to the line at 1, a mark on the largest."""
    pitch, left, right, top = ROW_PITCH, ROW_NAME, ROW_VALUE, 8.0
    height = top + pitch * len(strips) + 42
    bottom = height - 40
    x = Scale(0.0, 1.0, left, WIDTH - right)
    parts = [element("rect", x=x(1.0), y=top, width=right, height=bottom - top, class_="over")]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            element(
                "line", x1=x(value), x2=x(value), y1=top, y2=bottom, class_="limit" if value == 1 else "grid"
            )
        )
        parts.append(
            element("text", f"{value:g}", x=x(value), y=bottom + 16, class_="tick", text_anchor="middle")
        )
    parts.append(
        element("text", axis, x=(left + WIDTH - right) / 2, y=height - 6, class_="axis", text_anchor="middle")
    )
    parts += [_strip(s, x, top + pitch * (i + 0.5)) for i, s in enumerate(strips)]
    return _figure(parts, height, alt)


def interval_chart(
    reaches: Sequence[Reach], *, alt: str, axis: str, expected: float, span: tuple[float, float]
) -> Markup:
    """One row per value: its interval as a bar, a mark in the middle, and a line where theory expects it.

    `span` is what the axis has to reach at least, so that charts beside each other can share one.
    """
    pitch, left, right, top = ROW_PITCH, ROW_NAME, ROW_VALUE, 8.0
    height = top + pitch * len(reaches) + 42
    bottom = height - 40
    low = min([expected - 0.5, span[0], *(r.low for r in reaches)])
    high = max([expected + 0.5, span[1], *(r.high for r in reaches)])
    step = next((s for s in ROUND_STEPS if high - low <= MOST_STEPS * s), high - low)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    x = Scale(low, high, left, WIDTH - right)
    ticks = [low + step * i for i in range(round((high - low) / step) + 1)]
    parts = [*(_upright(x(t), top, bottom, f"{t:g}") for t in ticks)]
    parts.append(element("line", x1=x(expected), x2=x(expected), y1=top, y2=bottom, class_="expected"))
    parts.append(
        element("text", axis, x=(left + WIDTH - right) / 2, y=height - 6, class_="axis", text_anchor="middle")
    )
    parts += [_reach(r, x, top + pitch * (i + 0.5)) for i, r in enumerate(reaches)]
    return _figure(parts, height, alt)


def _upright(x: float, top: float, bottom: float, text: str) -> Markup:
    return element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid") + element(
        "text", text, x=x, y=bottom + 16, class_="tick", text_anchor="middle"
    )


def _reach(reach: Reach, x: Scale, y: float) -> Markup:
    parts = [
        element("text", shortened(reach.name), x=x.start - 10, y=y + 4, class_="name", text_anchor="end"),
        element("path", d=path([(x(reach.low), y), (x(reach.high), y)]), class_="reach"),
        _mark(PLAIN, x(reach.middle), y, reach.tip),
        element("text", reach.words, x=x.stop + 11, y=y + 4, class_="value"),
    ]
    return element("g", *parts, class_=f"series c{PLAIN}", **_data(reach.data))


def scatter_chart(
    dots: Sequence[ChartSeries],
    front: Sequence[Point],
    *,
    alt: str,
    x_unit: Callable[[float], str],
    y_unit: Callable[[float], str],
    x_label: str,
) -> Markup:
    """One point for each series, both axes logarithmic, less of both being better; `front` is joined by a line.

    Names stand in the legend, in the order of the points from top to bottom.
    """
    points = [dot.points[0] for dot in dots]
    left_low, left_high, x_ticks = powers([p.x for p in points])
    low, high, y_ticks = powers([p.y for p in points])
    names = [units.tick(y_unit, t) for t in y_ticks]
    left = 12 + CHARACTER * max(map(len, names))
    x = Scale(left_low, left_high, left, WIDTH - RIGHT, logarithmic=True)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic=True)
    parts = [
        *(_gridline(x, y(t), name) for t, name in zip(y_ticks, names, strict=True)),
        *(_x_tick(x(t), units.tick(x_unit, t)) for t in _thinned(x_ticks, x, 58)),
        element("text", x_label, x=(x.start + x.stop) / 2, y=HEIGHT - 3, class_="axis", text_anchor="middle"),
        element("text", "↙ better", x=x.start + 6, y=HEIGHT - BOTTOM - 6, class_="axis"),
        element("path", d=path([(x(p.x), y(p.y)) for p in front]), class_="front"),
    ]
    return _figure([*parts, *_lines(dots, x, y)], _height(dots), alt)


def _strip(strip: Strip, x: Scale, y: float) -> Markup:
    ticks = "".join(path([(x(min(m, 1.0)), y - 5), (x(min(m, 1.0)), y + 5)]) for m in sorted(strip.margins))
    name = element("text", shortened(strip.name), x=x.start - 10, y=y + 4, class_="name", text_anchor="end")
    marks = [element("path", d=ticks, class_="law")] if ticks else []
    if strip.margins:
        marks.append(_mark(PLAIN, x(min(max(strip.margins), 1.0)), y, strip.tip))
    words = f"{strip.value} ✗ {strip.beyond}" if strip.beyond else strip.value
    value = element("text", words, x=x.stop + 11, y=y + 4, class_="value broken" if strip.beyond else "value")
    return element("g", name, *marks, value, class_=f"series c{PLAIN}", **_data(strip.data))


def _height(series: Sequence[ChartSeries]) -> float:
    """A plot with its legend."""
    return HEIGHT + 8 + LEGEND_PITCH * _legend_rows(len(series))


def _legend_rows(count: int) -> int:
    return -(-count // LEGEND_COLUMNS)


def _lines(series: Sequence[ChartSeries], x: Scale, y: Scale) -> list[Markup]:
    """Each series with its place in the legend: down the first column, then the second."""
    order = sorted(range(len(series)), key=lambda i: y(series[i].points[-1].y))
    places = {i: divmod(place, _legend_rows(len(series))) for place, i in enumerate(order)}
    return [_line(s, x, y, *places[i]) for i, s in enumerate(series)]


def _line(series: ChartSeries, x: Scale, y: Scale, column: int, row: int) -> Markup:
    line = [(x(p.x), y(p.y)) for p in series.points]
    guide = [(x(size), y(value)) for size, value in series.guide]
    at = 12 + column * WIDTH / LEGEND_COLUMNS, HEIGHT + 14 + row * LEGEND_PITCH
    parts = [
        *([element("path", d=path(guide), class_="guide")] if guide else []),
        element("path", d=path(line), class_="line"),
        *(
            _mark(series.colour, px, py, p.tip)
            for (px, py), p in zip(line, series.points, strict=True)
            if p.tip
        ),
        element("path", d=path([(at[0] - 8, at[1] - 4), (at[0] + 8, at[1] - 4)]), class_="key"),
        _mark(series.colour, at[0], at[1] - 4, None),
        element("text", shortened(series.label), x=at[0] + 14, y=at[1], class_="name"),
    ]
    return element("g", *parts, class_=f"series c{series.colour % COLOURS}", **_data(series.data))


def _mark(colour: int, x: float, y: float, tip: str | None) -> Markup:
    return element("use", href=f"#m{colour % MARKS}", x=x, y=y, data_tip=tip)


def shortened(name: str) -> str:
    """A name that fits beside a chart: the middle of a long one is left out."""
    half = LONGEST_LABEL // 2
    return name if len(name) <= LONGEST_LABEL else f"{name[:half]}…{name[1 - half :]}"


def _gridline(x: Scale, y: float, text: str) -> Markup:
    return element("line", x1=x.start, x2=x.stop, y1=y, y2=y, class_="grid") + element(
        "text", text, x=x.start - 7, y=y + 3.5, class_="tick", text_anchor="end"
    )


def _x_tick(x: float, text: str) -> Markup:
    return element("text", text, x=x, y=HEIGHT - BOTTOM + 17, class_="tick", text_anchor="middle")


def _thinned(values: Sequence[float], x: Scale, gap: float = 44) -> list[float]:
    """Ticks that do not touch: from the right, so that the longest length is always named."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or x(kept[-1]) - x(value) >= gap:
            kept.append(value)
    return kept


def _data(names: dict[str, str]) -> dict[str, str]:
    return {f"data_{name}": value for name, value in names.items()}


def _figure(parts: Sequence[Markup], height: float, alt: str) -> Markup:
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_label=alt,
        tabindex=0,
        class_="chart",
    )
