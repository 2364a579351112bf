"""Broken laws and known failures in full: the smallest counterexample, and the line that shows it again."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qkverify import units
from qkverify.counterexamples.causes import causes, summary
from qkverify.report.markdown import block, code, plain
from qkverify.report.model import Report, margin
from qkverify.report.sections.verdicts import HARNESS, SHOWN, card_id
from qkverify.report.templating import fill
from qkverify.results import Verdict

ORDER = 20
TITLE = "Broken laws and known failures"

UNFOLDED = 8  # cards; the others are folded away


def html(report: Report) -> Markup:
    cards = [*report.broken, *report.findings]
    if not cards:
        return Markup("")
    groups = causes(report.broken)
    first = [*(cause.first for cause in groups), *representatives(report.findings)]
    shown = first[:UNFOLDED]
    return fill(
        "broken.jinja",
        groups=[(shown, ""), *_folded(first[UNFOLDED:], [v for v in cards if v not in first])],
        summary=summary(groups) if groups else "",
        beside={card_id(cause.first): "\n".join(cause.lines()) for cause in groups},
        anchors=anchors(report),
        card_id=card_id,
        label=label,
        margin=margin,
        why=lambda verdict: report.links.html(reason(verdict)),
    )


def representatives(cards: list[Verdict]) -> list[Verdict]:
    """The first finding of every law of an implementation, whatever the dtype."""
    firsts: dict[tuple[str, str, str, str], Verdict] = {}
    for v in cards:
        firsts.setdefault((v.outcome, v.implementation, v.device, v.law), v)
    return list(firsts.values())


def _folded(more: list[Verdict], again: list[Verdict]) -> list[tuple[list[Verdict], str]]:
    """What stands folded away, each pile with its title."""
    return [
        (more, f"{len(more)} more"),
        (again, f"The same causes in other laws and dtypes: {len(again)} more"),
    ]


def anchors(report: Report) -> dict[str, str]:
    """For the first card of every square the square's id, so that its address leads there without the script."""
    squares = {}
    for cell in report.cells:
        card = next((v for v in cell.verdicts if v.outcome in SHOWN), None)
        if card:
            squares[card_id(card)] = cell.id
    return squares


def label(verdict: Verdict) -> str:
    """The word on the card."""
    return {"error": HARNESS, "finding": "known failure", "failed": "broken"}.get(
        verdict.outcome, verdict.outcome
    )


def reason(verdict: Verdict) -> str:
    """The recorded reason, where it is more than a line of the counterexample."""
    shown = verdict.counterexample.message if verdict.counterexample else ""
    return "" if verdict.reason.strip() in shown else verdict.reason


def markdown(report: Report) -> str:
    """Each cause, and each finding once for an implementation on a device: with its laws and dtypes."""
    groups = causes(report.broken)
    broken = [_paragraph(report, [cause.first], cause.lines()) for cause in groups]
    findings: dict[tuple[str, ...], list[Verdict]] = {}
    for verdict in report.findings:
        findings.setdefault((verdict.reason, verdict.implementation, verdict.device), []).append(verdict)
    return "\n\n".join(
        [
            *([f"{summary(groups)} broken."] if groups else []),
            *broken,
            *(_paragraph(report, group) for group in findings.values()),
        ]
    )


def _paragraph(report: Report, group: Sequence[Verdict], beside: Sequence[str] = ()) -> str:
    verdict = group[0]
    laws, dtypes = (
        list(dict.fromkeys(words)) for words in zip(*((v.law, v.dtype) for v in group), strict=True)
    )
    where = code(f"{verdict.implementation}, {verdict.device}, {', '.join(dtypes)}")
    lines = [f"### {verdict.law} ({label(verdict)}): {where}", verdict.sentence]
    if len(laws) > 1:
        lines.append(f"It shows in {len(laws)} laws: {', '.join(laws)}.")
    if why := reason(verdict):
        lines.append(report.links.markdown(plain(why)))
    if example := verdict.counterexample:
        lines.append(block("\n".join([example.message, *beside])))
        again = f", again: `qkverify replay {example.replay}`" if example.replay else ""
        lines.append(f"margin {units.margin(margin(verdict)) or 'unknown'}{again}")
    return "\n\n".join(lines)
