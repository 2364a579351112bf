"""Every law in a sentence, with the number of configurations that it was checked on, and the outcomes."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from qkverify.report.model import BROKEN, Report
from qkverify.report.templating import fill
from qkverify.results import Verdict

ORDER = 70
TITLE = "The laws"

KNOWN = "known failure"


def html(report: Report) -> Markup:
    families = {family: [law for law in report.laws if law.family == family] for family in report.families}
    return fill("laws.jinja", families=families, outcomes=outcomes(report)) if report.laws else Markup("")


def outcomes(report: Report) -> dict[tuple[str, str], str]:
    """For each (family, law): "holds 31, broken 1, known failure 2, not offered 6"."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for verdict in report.verdicts:
        counts.setdefault((verdict.family, verdict.law), Counter())[_word(verdict)] += 1
    words = ("holds", "broken", KNOWN, "not offered")
    return {
        law: ", ".join(f"{word} {counted[word]}" for word in words if counted[word])
        for law, counted in counts.items()
    }


def _word(verdict: Verdict) -> str:
    if verdict.outcome in BROKEN:
        return "broken"
    return {"passed": "holds", "finding": KNOWN}.get(verdict.outcome, verdict.outcome)


def markdown(report: Report) -> str:
    """The summary leaves the catalogue to the page."""
    return ""
