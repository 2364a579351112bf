"""Broken laws and known findings in full: the smallest counterexample, and the line that shows it again."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from qkverify.report import units
from qkverify.report.markdown import block
from qkverify.report.model import Report
from qkverify.report.sections.verdicts import HARNESS, card_id
from qkverify.report.templating import fill
from qkverify.results import Verdict

ORDER = 20
TITLE = "Broken laws and findings"

_FINDING = re.compile(r"reports/findings/([\w.-]*\w)/?|https?://[^\s<>\"')]*[^\s<>\"').,;]")


def html(report: Report) -> Markup:
    cards = [*report.broken, *report.findings]
    return (
        fill("broken.jinja", cards=cards, card_id=card_id, linked=linked, label=label)
        if cards
        else Markup("")
    )


def label(verdict: Verdict) -> str:
    """The word on the card."""
    return {"error": HARNESS, "finding": "known finding", "failed": "broken"}.get(
        verdict.outcome, verdict.outcome
    )


def linked(reason: str) -> Markup:
    """A reason with its addresses as links: a finding's folder stands beside the device's."""
    text, end = Markup(""), 0
    for found in _FINDING.finditer(reason):
        href = f"../findings/{found[1]}/" if found[1] else found[0]
        text += Markup('{}<a href="{}">{}</a>').format(reason[end : found.start()], href, found[0])
        end = found.end()
    return text + escape(reason[end:])


def markdown(report: Report) -> str:
    return "\n\n".join(_paragraph(verdict) for verdict in [*report.broken, *report.findings])


def _paragraph(verdict: Verdict) -> str:
    where = f"{verdict.implementation}, {verdict.device}, {verdict.dtype}"
    lines = [f"### {verdict.law} ({label(verdict)}): `{where}`", verdict.sentence]
    if verdict.reason:
        lines.append(
            _FINDING.sub(lambda m: f"[{m[0]}](../findings/{m[1]}/)" if m[1] else m[0], verdict.reason)
        )
    if verdict.counterexample is not None:
        example = verdict.counterexample
        lines.append(block(example.message))
        again = f"`qkverify replay {example.replay}`" if example.replay else ""
        lines.append(f"margin {units.margin(example.margin) or 'unknown'}{', again: ' * bool(again)}{again}")
    return "\n\n".join(lines)
