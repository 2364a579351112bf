"""How much of the derived bound is used: the margins of all laws, for each implementation and dtype."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report.charts import Strip, strip_chart
from qkverify.report.markdown import code, table
from qkverify.report.model import BROKEN, Report, VerdictRow
from qkverify.report.templating import fill
from qkverify.results import Accuracy, Verdict

ORDER = 40
TITLE = "Accuracy"


class Margins(NamedTuple):
    """Of one row: the laws that hold and have a margin, smallest first, and how many broke their bound."""

    row: VerdictRow
    held: list[Verdict]
    broken: int

    @property
    def largest(self) -> Verdict | None:
        return self.held[-1] if self.held else None


class AccuracyPanel(NamedTuple):
    """One chart and its rows: `title` says which dtype and device."""

    title: str
    device: str
    dtype: str
    chart: Markup
    rows: list[Margins]

    @property
    def conclusion(self) -> str:
        """The largest margin of the laws that hold, and how many go over their bound."""
        held = [(one.largest.margin or 0.0, one.row.implementation) for one in self.rows if one.largest]
        over = sum(one.broken > 0 for one in self.rows)
        said = (
            f"the largest error that keeps a law is {units.margin(max(held)[0])} of its bound ({max(held)[1]})"
            if held
            else ""
        )
        beyond = f"{units.number_of(over, 'implementation')} over it" if over else "nobody over it"
        return f"{said}; {beyond}" if said else beyond


def html(report: Report) -> Markup:
    attention = {name for name in report.implementations if report.is_attention(name)}
    panels, others = (
        [_panel(report, *place, rows) for place, rows in _by_place(report, names).items()]
        for names in (attention, set(report.implementations) - attention)
    )
    words = {"leans": leans, "number": _number}
    return (
        fill("accuracy.jinja", panels=panels, others=others, report=report, errors=errors(report), **words)
        if panels or others
        else Markup("")
    )


def errors(report: Report) -> list[Accuracy]:
    """Errors on ordinary numbers, by dtype, the nearest first."""
    return sorted(
        report.accuracy, key=lambda a: (report.dtypes.index(a.dtype), a.ratio if a.ratio is not None else 0.0)
    )


def leans(accuracy: Accuracy) -> str:
    """ "toward zero" or "away from zero" where the mean error is more than four standard errors from none."""
    if abs(accuracy.lean) <= 4 * accuracy.lean_error:
        return "no"
    return "away from zero" if accuracy.lean > 0 else "toward zero"


def margins(report: Report) -> list[Margins]:
    """Of every row in which some law has a margin."""
    of_rows = []
    for row in report.rows:
        verdicts = [v for cell in row.cells.values() for v in cell.verdicts if v.margin is not None]
        held = sorted((v for v in verdicts if v.outcome == "passed"), key=lambda v: (v.margin or 0.0, v.law))
        over = sum(v.outcome in BROKEN or v.outcome == "finding" for v in verdicts)
        if held or over:
            of_rows.append(Margins(row, held, over))
    return of_rows


def _by_place(report: Report, names: set[str]) -> dict[tuple[str, str], list[Margins]]:
    places: dict[tuple[str, str], list[Margins]] = {
        (device, dtype): [] for device in report.devices for dtype in report.dtypes
    }
    for margins_of_row in (
        margins_of_row for margins_of_row in margins(report) if margins_of_row.row.implementation in names
    ):
        places[margins_of_row.row.device, margins_of_row.row.dtype].append(margins_of_row)
    return {place: rows for place, rows in places.items() if rows}


def _panel(report: Report, device: str, dtype: str, rows: list[Margins]) -> AccuracyPanel:
    title = f"{dtype} on {device}"
    strips = [_strip(report, margins_of_row) for margins_of_row in rows]
    alt = f"Largest margin of each implementation, {title}: " + ", ".join(
        f"{s.name} {s.value}" for s in strips
    )
    return AccuracyPanel(
        title,
        device,
        dtype,
        strip_chart(strips, alt=alt, axis="margin: largest error as a share of the bound"),
        rows,
    )


def _strip(report: Report, margins_of_row: Margins) -> Strip:
    largest, row = margins_of_row.largest, margins_of_row.row
    tip = (
        f"{row.implementation}: largest margin {units.margin(largest.margin)}, {largest.law}"
        if largest
        else ""
    )
    return Strip(
        name=row.implementation,
        margins=[v.margin or 0.0 for v in margins_of_row.held],
        value=units.margin(largest.margin) if largest else "",
        tip=tip,
        beyond=margins_of_row.broken,
        data={"implementation": row.implementation},
    )


def markdown(report: Report) -> str:
    rows = []
    for margins_of_row in margins(report):
        largest = margins_of_row.largest
        rows.append(
            [
                code(margins_of_row.row.implementation),
                margins_of_row.row.device,
                margins_of_row.row.dtype,
                units.margin(largest.margin) if largest else "",
                code(largest.law) if largest else "",
                str(margins_of_row.broken or ""),
            ]
        )
    header = ["implementation", "device", "dtype", "largest margin", "of the law", "laws over the bound"]
    if not rows:
        return ""
    sized = [
        [
            code(accuracy.implementation),
            accuracy.device,
            accuracy.dtype,
            *map(_number, (accuracy.ratio, accuracy.worst_ratio, accuracy.positive)),
            leans(accuracy),
        ]
        for accuracy in errors(report)
    ]
    head = ["implementation", "device", "dtype", "error against a textbook", "largest", "positive", "leans"]
    return table(header, rows) + (f"\n\n{table(head, sized)}" if sized else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
