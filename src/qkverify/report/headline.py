"""The verdict that is read in five seconds: one sentence, one line of facts, and what is broken by name."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from qkverify import units
from qkverify.report.markdown import plain
from qkverify.report.model import DTYPES, JUDGED, Report, in_order
from qkverify.results import Outcome, Verdict
from qkverify.timing import statistics

WORDS: dict[Outcome, str] = {
    "failed": "broken",
    "crashed": "crashed",
    "timed out": "timed out",
    "error": "harness failed",
    "finding": "known failures",
    "passed": "hold",
    "not offered": "not offered",
    "unavailable": "unavailable",
}
TALLIED: tuple[Outcome, ...] = (
    "passed",
    "finding",
    "failed",
    "crashed",
    "timed out",
    "error",
    "not offered",
)


@dataclass(frozen=True)
class Charge:
    """What one implementation breaks on one device: `verdict` is the first of `laws`, in `dtypes`."""

    verdict: Verdict
    laws: tuple[str, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Headline:
    """`state` is "good", "bad" or "empty"; `tally` counts laws x cells by outcome, what holds first."""

    state: str
    sentence: str
    facts: tuple[str, ...]
    charges: tuple[Charge, ...]
    tally: tuple[tuple[Outcome, str, int], ...]
    control: str


def of(report: Report) -> Headline:
    counts = Counter(v.outcome for v in report.verdicts)
    tally = tuple((outcome, WORDS[outcome], counts[outcome]) for outcome in TALLIED if counts[outcome])
    subject = report.subject
    verified = subject.judged and not subject.unverified
    state = "bad" if subject.broken else "good" if verified else "empty"
    return Headline(state, sentence(report), facts(report), charges(report), tally, control(report))


def sentence(report: Report) -> str:
    """Whether laws are broken, by how many of how many: "2 of 9 implementations break a law". A baseline that the run named is
    none of them."""
    report = report.subject
    total, unverified = len(report.judged), unverified_part(report)
    if not total or unverified == NOTHING:
        return NOTHING
    selected = (
        "selected " if any(run.selection for run in report.runs) else ""
    )  # in one run of the file, and so said of all
    broken = {v.implementation for v in report.broken if v.outcome != "error"}
    errors = sum(v.outcome == "error" for v in report.broken)
    faulty = len({v.implementation for v in report.findings} - broken)
    more = f"; {unverified}" if unverified else ""
    rest = f"; {faulty} {'has' if faulty == 1 else 'have'} known failures" if faulty else ""
    if broken and total == 1:
        laws = units.number_of(len({v.law for v in report.broken}), "law")
        return f"{report.judged[0]} breaks {laws}{more}"
    if broken:
        verb = "breaks a law" if len(broken) == 1 else "break a law"
        return f"{len(broken)} of {units.number_of(total, 'implementation')} {verb}{rest}{more}"
    if errors:
        return f"The harness failed in {units.number_of(errors, 'case')}; no {selected}law is broken elsewhere{rest}{more}"
    if unverified:
        return f"{unverified}; every {selected}law holds for what was verified{rest}"
    if not faulty:
        return f"Every {selected}law holds for {report.judged[0] if total == 1 else f'all {total} implementations'}"
    if faulty == total:
        faults = units.number_of(len({v.reason for v in report.findings}), "known failure")
        who = f"{report.judged[0]} has" if total == 1 else f"{total} implementations have"
        return f"{who} {faults}; every other {selected}law holds"
    kept, verb = total - faulty, "keeps" if total - faulty == 1 else "keep"
    return f"{kept} of {units.number_of(total, 'implementation')} {verb} every {selected}law{rest}"


NOTHING = "Nothing was verified in this run"


def unverified_part(report: Report) -> str:
    """ "1 implementation was not verified in float16", `NOTHING` where that is all, or nothing where all was verified."""
    rows = [row for row in report.rows if row.cells]
    if not report.unverified:
        return ""
    if len(report.unverified) == len(rows):
        return NOTHING
    names = {row.implementation for row in report.unverified}
    partly = names & {row.implementation for row in rows if row not in report.unverified}
    verb = "was" if len(names) == 1 else "were"
    dtypes = in_order({row.dtype for row in report.unverified}, DTYPES)
    where = f" in {', '.join(dtypes)}" if partly else ""
    return f"{units.number_of(len(names), 'implementation')} {verb} not verified{where}"


def charges(report: Report) -> tuple[Charge, ...]:
    """Broken laws and known failures, gravest first, each outcome, implementation and device once."""
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for v in [*report.broken, *report.findings]:
        groups.setdefault((v.outcome, v.implementation, v.device), []).append(v)
    return tuple(
        Charge(
            group[0], tuple(dict.fromkeys(v.law for v in group)), tuple(dict.fromkeys(v.dtype for v in group))
        )
        for group in groups.values()
    )


def facts(report: Report) -> tuple[str, ...]:
    """What was verified and how much of it, for the line under the sentence."""
    cells = sum(any(v.outcome in JUDGED for v in cell.verdicts) for cell in report.cells)
    judged = {row.dtype for row in report.rows if row.cells}
    dtypes = ", ".join(dtype for dtype in report.dtypes if dtype in judged)
    return (
        f"{units.number_of(len(report.laws), 'law')} in {units.number_of(len(report.families), 'family')}",
        f"{units.number_of(len(report.judged), 'implementation')} in {dtypes or 'no dtype'}",
        f"{units.number_of(report.examples, 'generated example')} in {units.number_of(cells, 'configuration')}",
    )


def control(report: Report) -> str:
    """The A/A control: what a difference of nothing looks like on this machine."""
    worst = report.worst_control
    if worst is None:
        return ""
    typical = statistics.median([statistics.noise([c]) for c in report.controls])
    reach = f"up to {_reach(math.exp(typical))}"
    if len(report.controls) > 1:
        reach += f" in a typical case, up to {_reach(math.exp(statistics.noise([worst])))} in the worst"
    return (
        f"Noise of the times: one implementation, timed under two names, differs by {reach}; "
        "smaller differences are called neither faster nor slower"
    )


def _reach(factor: float) -> str:
    """How far noise reaches: 1.06 is "6.0 %", 3 is "a factor of 3.00"."""
    return units.percent(factor - 1) if factor < 2 else f"a factor of {units.ratio(factor)}"


def markdown(report: Report) -> str:
    head = of(report)
    lines = [f"# {report.device}: {plain(head.sentence)}", ", ".join(head.facts) + "."]
    return "\n\n".join(line for line in lines if line)
