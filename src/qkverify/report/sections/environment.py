"""Where and how the numbers were made: what decides comparability, what is only recorded, and the runs."""

from __future__ import annotations

from markupsafe import Markup

from qkverify.report import units
from qkverify.report.markdown import table
from qkverify.report.model import Report
from qkverify.report.templating import fill

ORDER = 80
TITLE = "Environment"


def html(report: Report) -> Markup:
    if not report.runs:
        return Markup("")
    last = report.runs[-1].fingerprint
    parts = (
        ("Identity: by which results may be compared", last.identity),
        ("State: what only was so at the time", last.state),
    )
    return fill("environment.jinja", report=report, parts=parts, changed=changed(report))


def changed(report: Report) -> list[str]:
    """Identity facts that differ between the runs of this file: such records should not be compared."""
    identities = [run.fingerprint.identity for run in report.runs]
    names = dict.fromkeys(name for identity in identities for name in identity)
    return [name for name in names if len({identity.get(name) for identity in identities}) > 1]


def markdown(report: Report) -> str:
    if not report.runs:
        return ""
    rows = [
        [name.replace("_", " "), units.fact(fact)]
        for name, fact in report.identity.items()
        if fact is not None
    ]
    runs = [
        f"- {run.started}: `{run.command}`, profile {run.profile}, seed {run.seed}, qkverify {run.qkverify}"
        for run in report.runs
    ]
    return table(["fact", "value"], rows) + "\n\n" + "\n".join(runs)
