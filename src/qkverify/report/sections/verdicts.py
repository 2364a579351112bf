"""The verdict matrices: implementations down, law families or dtypes across, and the laws of each square in a panel."""

from __future__ import annotations

from typing import Any, NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report import headline
from qkverify.report.markdown import code, plain, table
from qkverify.report.model import BROKEN, BY_GRAVITY, MatrixSquare, Report, VerdictRow, element_id, margin
from qkverify.report.templating import fill
from qkverify.results import ImplementationInfo, Verdict
from qkverify.verification.outcomes import margin_in_words

ORDER = 10
TITLE = "Verdicts"

GLYPHS = {
    "passed": "✓",
    "finding": "◆",
    "not offered": "–",
    "not verified": "?",
    **dict.fromkeys(BROKEN, "✗"),
}
CALLS = "calls"  # the family of what every call owes its caller
HARNESS = "harness failed"
SHOWN = BROKEN | {"finding"}  # in full, on a card


class Matrix(NamedTuple):
    """Implementations that are judged by the same families of laws.

    Where there are several families they stand across, and dtypes down; a single one has its dtypes across. `folded` is what
    every call owes its caller, beside a family of its own: it stands open only if something in it is broken or known.
    """

    families: list[str]
    dtypes: list[str]
    groups: list[tuple[str, ImplementationInfo | None, list[VerdictRow]]]
    folded: bool = False

    @property
    def single(self) -> bool:
        return len(self.families) == 1

    @property
    def open(self) -> bool:
        cells = [
            row.cells[f]
            for _, _, rows in self.groups
            for row in rows
            for f in self.families
            if f in row.cells
        ]
        return not self.folded or any(cell.gravest_outcome in SHOWN for cell in cells)

    @property
    def several_devices(self) -> bool:
        return len({row.device for _, _, rows in self.groups for row in rows}) > 1

    def places(self, rows: list[VerdictRow]) -> list[tuple[str, dict[str, MatrixSquare]]]:
        """Of a single family: for every device its cells by dtype."""
        (family,) = self.families
        by_device: dict[str, dict[str, MatrixSquare]] = {}
        for row in rows:
            if family in row.cells:
                by_device.setdefault(row.device, {})[row.dtype] = row.cells[family]
        return list(by_device.items())


def html(report: Report) -> Markup:
    if not report.rows:
        return Markup("")
    return fill(
        "verdicts.jinja",
        report=report,
        headline=headline.of(report),
        matrices=matrices(report),
        laws={family: sum(law.family == family for law in report.laws) for family in report.families},
        details=details(report),
        gone=gone(report),
        unverified=unverified(report),
        carded={cell.id for cell in report.cells if any(v.outcome in SHOWN for v in cell.verdicts)},
        words=words,
        aloud=aloud,
        glyphs=GLYPHS,
    )


def matrices(report: Report) -> list[Matrix]:
    """One matrix for whatever many families judge, one for each family that judges something by itself, and one for the calls
    of these."""
    many: list[str] = []
    few: dict[str, list[str]] = {}
    for name in report.implementations:
        judged = {family for row in report.rows if row.implementation == name for family in row.cells}
        families = [family for family in report.families if family in judged]
        if len(families) > units.FEW_FAMILIES:
            many.append(name)
        for family in families if len(families) <= units.FEW_FAMILIES else ():
            few.setdefault(family, []).append(name)
    calls = few.pop(CALLS, []) if len(few) > 1 else []
    drawn = [_matrix(report, many)] if many else []
    drawn += [_matrix(report, names, family) for family, names in few.items()]
    return [*drawn, *([_matrix(report, calls, CALLS)._replace(folded=True)] if calls else [])]


def _matrix(report: Report, names: list[str], family: str = "") -> Matrix:
    """`family` alone, or all families of these implementations."""
    rows = [
        row
        for row in report.rows
        if row.implementation in names and (family in row.cells if family else row.cells)
    ]
    groups = [(name, report.infos.get(name), [r for r in rows if r.implementation == name]) for name in names]
    families = [family] if family else [f for f in report.families if any(f in row.cells for row in rows)]
    return Matrix(families, [d for d in report.dtypes if any(row.dtype == d for row in rows)], groups)


def gone(report: Report) -> dict[tuple[str, str], list[str]]:
    """What was not run, by device and reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        if not row.cells:
            by_reason.setdefault((row.device, row.reason), []).append(row.implementation)
    return by_reason


def unverified(report: Report) -> dict[str, list[str]]:
    """What was not verified of what was run, and of whom: everything with the reason, or a phrase for each part."""
    by_phrase: dict[str, list[str]] = {}
    for row in report.rows:
        reasons = [row.said.reason] if row in report.unverified else row.said.not_verified
        for phrase in reasons if row.cells else ():
            by_phrase.setdefault(phrase, []).append(row.implementation)
    return {phrase: list(dict.fromkeys(names)) for phrase, names in by_phrase.items()}


def words(cell: MatrixSquare) -> tuple[str, str]:
    """What a cell says, and what it says beneath in small."""
    first, more = cell.gravest[0], len(cell.gravest) - 1
    rest = f"+ {more} more" if more else ""
    worst = margin(first)
    over = "" if worst is None else f"margin {units.margin(worst)}"
    match cell.outcome:
        case "passed":
            return margin_in_words(cell.verdicts), ""
        case "failed":
            return first.law, joined(over, rest)
        case "finding":
            return first.law, joined("known failure", rest)
        case "crashed" | "timed out":
            return f"{cell.outcome}: {first.law}", rest
        case "error":
            return f"{HARNESS}: {first.law}", rest
    return cell.outcome, ""


def joined(*words: str) -> str:
    """Those that are not empty, with commas."""
    return ", ".join(filter(None, words))


def aloud(cell: MatrixSquare) -> str:
    """The whole cell in one sentence, for its tooltip and for a screen reader."""
    held = f"{units.number_of(cell.held, 'law')} of {len(cell.verdicts)} held"
    examples = units.number_of(sum(v.examples for v in cell.verdicts), "example")
    main, small = words(cell)
    said = f"largest margin {main}" if cell.outcome == "passed" and cell.margin is not None else main
    glossed = f"{cell.outcome}: {said}" if cell.outcome in ("failed", "finding") else said
    return f"{cell.family}: {glossed}{f' ({small})' * bool(small)}; {held}, {examples}"


def card_id(verdict: Verdict) -> str:
    """The id of the card that shows a broken law or a finding in full."""
    return element_id(
        "case", verdict.implementation, verdict.device, verdict.dtype, verdict.family, verdict.law
    )


def details(report: Report) -> dict[str, Any]:
    """Every verdict, compactly, for the panel that a cell opens: laws and reasons are written once."""
    laws = {(law.family, law.law): i for i, law in enumerate(report.laws)}
    reasons = {reason: i for i, reason in enumerate(dict.fromkeys(v.reason for v in report.verdicts))}

    def line(v: Verdict) -> list[int | str]:
        time = units.seconds(v.seconds) if v.seconds else ""
        outcome = BY_GRAVITY.index(v.outcome)
        return [laws[v.family, v.law], outcome, v.examples, units.margin(margin(v)), time, reasons[v.reason]]

    cards = {cell.id: [card_id(v) for v in cell.verdicts if v.outcome in SHOWN] for cell in report.cells}
    return {
        "outcomes": BY_GRAVITY,
        "laws": [[law.law, law.sentence, int(law.exact)] for law in report.laws],
        "reasons": list(reasons),
        "cells": {cell.id: [line(v) for v in cell.by_gravity] for cell in report.cells},
        "cards": {cell: ids for cell, ids in cards.items() if ids},
    }


def markdown(report: Report) -> str:
    rows = [
        [
            code(row.implementation),
            row.device,
            row.dtype,
            *(_short(row.cells.get(f)) for f in report.families),
        ]
        for row in report.rows
        if row.cells
    ]
    untested = [
        f"- {f'{device}: ' * bool(device)}{plain(reason)}: {', '.join(map(code, names))}"
        for (device, reason), names in gone(report).items()
    ]
    missed = [
        f"- not verified: {phrase}: {', '.join(map(code, names))}"
        for phrase, names in unverified(report).items()
    ]
    legend = "✓ with the largest margin (|error| / derived bound; 1 is the limit), "
    legend += "✗ with the broken law, ◆ with how many laws known failures break: each is told below, once."
    judged = [table(["implementation", "device", "dtype", *report.families], rows), legend] if rows else []
    return "\n\n".join(filter(None, [*judged, "\n".join(missed), "\n".join(untested)]))


def _short(cell: MatrixSquare | None) -> str:
    if cell is None:
        return ""
    main, small = words(cell)
    if cell.outcome == "finding":  # told once for all dtypes, below
        return f"{GLYPHS[cell.outcome]} {units.number_of(len(cell.gravest), 'law')}"
    glyph = "" if cell.outcome == "not offered" else f"{GLYPHS[cell.outcome]} "
    return f"{glyph}{main}{f' ({small})' * bool(small)}"
