"""The pictures of the sources, from what was measured: positions, the softmax, why attention is scaled, heads, masks."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from qkverify.report.charts import ChartSeries, Point, line_chart
from qkverify.report.heat import heat, label_marks
from qkverify.report.markdown import plain, table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Picture

ORDER = 68
TITLE = "Pictures"
LABELS = "picture-labels"


class Drawn(NamedTuple):
    """A picture and its chart."""

    picture: Picture
    chart: Markup


class Mask(NamedTuple):
    """One case of the masks: the answers, and who refused it and why."""

    title: str
    answers: list[Drawn]
    refused: str


def html(report: Report) -> Markup:
    if not report.pictures:
        return Markup("")
    heads = [p for p in of_group(report, "attention") if p.values]
    return fill(
        "pictures.jinja",
        positions=[Drawn(p, heat(p)) for p in of_group(report, "positions")],
        jacobian=[Drawn(p, heat(p)) for p in of_group(report, "jacobian")],
        scaling=[Drawn(p, lines(p)) for p in of_group(report, "scaling")],
        sentence=[p for p in of_group(report, "attention") if not p.values],
        layers=layers(heads),
        labels=LABELS,
        marks=label_marks(heads[0]) if heads else "",
        masks=masks(report),
    )


def of_group(report: Report, group: str) -> list[Picture]:
    return [picture for picture in report.pictures if picture.group == group]


def layers(heads: list[Picture]) -> dict[str, list[Drawn]]:
    """The heads by layer; their titles are "layer 1, head 2"."""
    parted = groupby(heads, key=lambda p: p.title.partition(",")[0])
    return {
        layer: [Drawn(p, heat(p, labels=LABELS if p.rows == heads[0].rows else "")) for p in mine]
        for layer, mine in parted
    }


def masks(report: Report) -> list[Mask]:
    """The cases; the names of a case's records differ in their last part."""
    cases = groupby(of_group(report, "masks"), key=lambda p: p.name.rpartition("-")[0])
    drawn = []
    for _, members in cases:
        mine = list(members)
        reasons = "; ".join(p.reason for p in mine if p.reason)
        drawn.append(
            Mask(mine[0].title.partition(":")[0], [Drawn(p, heat(p)) for p in mine if p.values], reasons)
        )
    return drawn


def lines(picture: Picture) -> Markup:
    """Rows as lines over the numbers of the columns; the third, where there is one, is what theory says."""
    xs = [float(column) for column in picture.columns]
    series = [
        ChartSeries(
            name,
            i,
            [
                Point(x, y, f"{picture.column_axis} = {x:g}, {name}: {y:.3g}")
                for x, y in zip(xs, row, strict=True)
                if y
            ],
        )
        for i, (name, row) in enumerate(zip(picture.rows[:2], picture.values, strict=False))
    ]
    theory = [
        Point(x, y, f"theory: {name}")
        for name, row in zip(picture.rows[2:], picture.values[2:], strict=True)
        for x, y in zip(xs, row, strict=True) if y
    ]  # fmt: skip
    return line_chart(series, alt=f"{picture.title}. {picture.finding}", unit=lambda y: f"{y:g}", x_label=picture.column_axis,
                      ceiling=theory)  # fmt: skip


def markdown(report: Report) -> str:
    told = [p for p in report.pictures if p.group != "attention" or not p.values]
    rows = [[p.title, plain(p.reason or p.finding), ", ".join(p.made_by)] for p in told]
    return table(["picture", "what is seen", "made by"], rows) if rows else ""
