"""Times of operations other than attention: every implementation of one, on two sizes, against the first that torch has."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report.markdown import code, table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import OperationTiming

ORDER = 55
TITLE = "Other operations"
BASELINE = "torch"  # the framework whose first implementation the others are compared with


class OperationRow(NamedTuple):
    """One implementation at one size; `ratio` is its median over that of torch's first implementation there."""

    timing: OperationTiming
    seconds: float | None
    low: float
    high: float
    ratio: float | None

    @property
    def sizes(self) -> str:
        return " ".join(f"{letter} {size:,}" for letter, size in self.timing.sizes.items())


def rows(report: Report) -> list[OperationRow]:
    """Operation by operation, the short size first, the fastest first."""
    groups: dict[tuple[str, str, str, str], list[OperationTiming]] = {}
    for timing in report.operation_timings:
        groups.setdefault((timing.operation, timing.case, timing.device, timing.dtype), []).append(timing)
    return [row for timings in groups.values() for row in _group(report, timings)]


def _group(report: Report, timings: list[OperationTiming]) -> list[OperationRow]:
    baseline = next((t for t in timings if t.seconds and _arrays(report, t.implementation) == BASELINE), None)
    return sorted(
        (_row(timing, baseline) for timing in timings), key=lambda row: (row.seconds is None, row.seconds)
    )


def _arrays(report: Report, implementation: str) -> str:
    """The framework whose arrays an implementation takes; "" where nothing describes it."""
    info = report.infos.get(implementation)
    return "" if info is None else info.arrays


def _row(timing: OperationTiming, baseline: OperationTiming | None) -> OperationRow:
    if not timing.seconds:
        return OperationRow(timing, None, 0.0, 0.0, None)
    seconds = median(timing.seconds)
    ratio = None if baseline is None or baseline is timing else seconds / median(baseline.seconds)
    return OperationRow(timing, seconds, min(timing.seconds), max(timing.seconds), ratio)


def html(report: Report) -> Markup:
    timed = rows(report)
    return (
        fill("operations.jinja", rows=timed, implementations=len({r.timing.implementation for r in timed}))
        if timed
        else Markup("")
    )


def markdown(report: Report) -> str:
    header = ["operation", "sizes", "implementation", "median", "of the first of torch", "margin"]
    lines = [
        [
            row.timing.operation,
            row.sizes,
            code(row.timing.implementation),
            row.timing.reason if row.seconds is None else units.seconds(row.seconds),
            "" if row.ratio is None else f"{row.ratio:.2f} x",
            "" if row.timing.margin is None else f"{row.timing.margin:.2g}",
        ]
        for row in rows(report)
    ]
    return table(header, lines) if lines else ""
