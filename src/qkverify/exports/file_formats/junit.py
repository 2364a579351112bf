"""The latest verdict of every law as JUnit XML, which GitLab, Jenkins and most others show.

A suite is one implementation on one device in one dtype, a case one law. A broken law is a failure with the whole
counterexample; what crashed, timed out or failed in the harness is an error; what is not offered or not available, and a known
finding, is skipped with its reason (as pytest does with an expected failure). A suite of which nothing was verified has one more
case, an error that says why; what is said of a suite stands in its property "outcome". Characters that XML cannot hold are
written as pytest writes them, #x00.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as ET

from qkverify import units
from qkverify.results import ImplementationInfo, Record, RunStart, Verdict, of_kind
from qkverify.verification.outcomes import NOT_VERIFIED, CellOutcome, of_cell_of

ABOUT = "verdicts for a CI system"
SUFFIXES = (".xml",)
OFFERS = ("verdicts",)

ERRORS = ("crashed", "timed out", "error")
SKIPPED = ("not offered", "unavailable", "finding")
ILLEGAL = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def export(records: Sequence[Record], what: str) -> bytes:
    latest = {(v.implementation, v.device, v.dtype, v.family, v.law): v for v in of_kind(records, Verdict)}
    run = next(iter(reversed(of_kind(records, RunStart))), None)
    suites: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in latest.values():
        suites.setdefault((verdict.implementation, verdict.device, verdict.dtype), []).append(verdict)
    infos = {info.name: info for info in of_kind(records, ImplementationInfo)}
    outcomes = {key: of_cell_of(infos.get(key[0]), verdicts) for key, verdicts in suites.items()}
    for key, outcome in outcomes.items():
        if any(verdict.outcome != "unavailable" for verdict in suites[key]):
            suites[key] += _unverified(key, outcome)
    every = [verdict for verdicts in suites.values() for verdict in verdicts]
    root = ET.Element("testsuites", {"name": "qkverify", **_counts(every)})
    del root.attrib["skipped"]  # the schema of Jenkins's xUnit plugin has it for suites alone
    for (implementation, device, dtype), verdicts in suites.items():
        name = " ".join(filter(None, [implementation, device, dtype]))
        suite = ET.SubElement(root, "testsuite", {"name": legal(name), **_counts(verdicts)})
        if run:
            suite.set("timestamp", legal(run.started))
            facts = {"qkverify": run.qkverify, "profile": run.profile, "command": run.command}
            _properties(suite, facts | {"outcome": str(outcomes[implementation, device, dtype])})
        for verdict in verdicts:
            suite.append(case(verdict))
    ET.indent(root, " ")
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _unverified(key: tuple[str, str, str], outcome: CellOutcome) -> list[Verdict]:
    """An error in place of the laws that said nothing."""
    if outcome.word != NOT_VERIFIED:
        return []
    implementation, device, dtype = key
    return [Verdict(law="something_was_verified", family="outcome", exact=True, implementation=implementation, device=device,
                    dtype=dtype, outcome="error", reason=outcome.sentence(),
                    sentence="Results are compared with the reference.")]  # fmt: skip


def case(verdict: Verdict) -> ET.Element:
    place = ".".join(filter(None, [verdict.implementation, verdict.device, verdict.dtype, verdict.family]))
    element = ET.Element(
        "testcase", classname=legal(place), name=legal(verdict.law), time=f"{verdict.seconds:.3f}"
    )
    example = verdict.counterexample
    text = example.message if example else "\n".join(filter(None, [verdict.sentence, verdict.reason]))
    if verdict.outcome == "failed":
        margin = f" (margin {units.margin(example.margin)})" if example and example.margin is not None else ""
        _because(element, "failure", "LawViolation", f"{verdict.sentence}{margin}", text)
    elif verdict.outcome in ERRORS:
        _because(element, "error", verdict.outcome, verdict.reason or verdict.outcome, text)
    elif verdict.outcome in SKIPPED:
        details = text if verdict.outcome == "finding" else ""
        _because(element, "skipped", verdict.outcome, verdict.reason or verdict.outcome, details)
    elif verdict.outcome == "passed":
        said = f"{verdict.sentence}\n{units.number_of(verdict.examples, 'example')}"
        margin = f", largest margin {units.margin(verdict.margin)}" if verdict.margin is not None else ""
        ET.SubElement(element, "system-out").text = legal(said + margin)
    return element


def legal(text: str) -> str:
    """Text as XML can hold it; line ends become what an XML parser would make of them."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return ILLEGAL.sub(lambda match: f"#x{ord(match[0]):02X}", lines)


def _because(parent: ET.Element, tag: str, kind: str, message: str, text: str) -> None:
    element = ET.SubElement(parent, tag, type=kind, message=legal(message))
    element.text = legal(text) or None


def _properties(suite: ET.Element, facts: dict[str, str]) -> None:
    properties = ET.SubElement(suite, "properties")
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=name, value=legal(value))


def _counts(verdicts: Iterable[Verdict]) -> dict[str, str]:
    every = list(verdicts)
    outcomes = [verdict.outcome for verdict in every]
    return {
        "tests": str(len(every)),
        "failures": str(outcomes.count("failed")),
        "errors": str(sum(outcome in ERRORS for outcome in outcomes)),
        "skipped": str(sum(outcome in SKIPPED for outcome in outcomes)),
        "time": f"{sum(verdict.seconds for verdict in every):.3f}",
    }
