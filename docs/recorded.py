"""What the committed reports say, for the documentation: made from reports/*/results.jsonl and reports/power.jsonl."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from block import ROOT, block

from qkverify import results, units
from qkverify.report import POWER, headline, page
from qkverify.report.headline import WORDS
from qkverify.report.markdown import code, table
from qkverify.report.model import Report
from qkverify.report.sections import semantics, verdicts
from qkverify.timing import statistics
from qkverify.verification import mutation_testing

REPORTS = ROOT / "reports"


@lru_cache(maxsize=1)
def devices() -> dict[str, Report]:
    """By folder."""
    return {path.parent.name: Report(results.read(path)) for path in sorted(REPORTS.glob("*/results.jsonl"))}


@lru_cache(maxsize=1)
def of_devices() -> str:
    return _digest(*sorted(REPORTS.glob("*/results.jsonl")))


@lru_cache(maxsize=1)
def of_power() -> str:
    path = REPORTS / POWER
    return _digest(*[path] if path.is_file() else [])


def _digest(*paths: object) -> str:
    """Of files; nothing where there are none."""
    digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)  # type: ignore[attr-defined]
    return hashlib.sha256(digests).hexdigest()[:12] if paths else ""


@block("reports", of_devices)
def _() -> str:
    rows = [
        [
            f"[{report.device}](../reports/{folder}/summary.md)",
            headline.sentence(report),
            headline.control(report),
        ]
        for folder, report in devices().items()
    ]
    return table(["device", "verdict", "A/A control"], rows)


@block("sections")
def _() -> str:
    """The parts of the page in its order, each with the first line of its module."""
    rows = [[m.TITLE, (m.__doc__ or "").strip().splitlines()[0]] for _, m in page._sections()]
    return table(["section", "what it shows"], rows)


@block("outcomes")
def _() -> str:
    glyphs = {**verdicts.GLYPHS, "unavailable": ""}
    rows = [[glyphs.get(outcome, ""), outcome, word] for outcome, word in WORDS.items()]
    return table(["sign", "outcome in the records", "word on the page"], rows)


@block("conventions")
def _() -> str:
    rows = [[code(name), semantics.EXPLAINED.get(name, "")] for name in semantics.CONVENTIONS]
    return table(["convention", "what differs"], rows)


@block("controls", of_devices)
def _() -> str:
    """How far the A/A controls of the committed reports strayed."""
    rows = []
    for report in devices().values():
        off = [abs(np.log(c.ratio)) for c in report.controls]
        if off:
            quiet = sum(difference <= statistics.QUIET for difference in off)
            rows.append(
                [
                    report.device,
                    str(len(off)),
                    str(quiet),
                    units.percent(float(np.expm1(np.median(off)))),
                    units.percent(float(np.expm1(max(off)))),
                    units.percent(
                        float(
                            np.expm1(np.median([min(10.0, statistics.noise([c])) for c in report.controls]))
                        )
                    ),
                ]
            )
    return table(
        [
            "device",
            "controls",
            "within 1 %",
            "usual difference",
            "largest",
            "not judged within, in the middle",
        ],
        rows,
    )


@block("ceilings", of_devices)
def _() -> str:
    rows = [
        [report.device, c.dtype, "matrix product" if c.what == "matmul" else "copy",
         units.flops(c.rate) if c.what == "matmul" else units.bandwidth(c.rate)]
        for report in devices().values()
        for c in report.ceilings
    ]  # fmt: skip
    return table(["device", "dtype", "what", "best"], rows)


@block("margins", of_devices)
def _() -> str:
    """How near the laws that hold come to their bounds."""
    rows = []
    for report in devices().values():
        for dtype in report.dtypes:
            margins = [
                v.margin
                for v in report.verdicts
                if v.dtype == dtype and v.outcome == "passed" and v.margin is not None
            ]
            if margins:
                rows.append(
                    [
                        report.device,
                        dtype,
                        f"{len(margins):,}",
                        *map(units.margin, (float(np.median(margins)), max(margins))),
                    ]
                )
    return table(["device", "dtype", "laws times implementations", "median margin", "largest"], rows)


@block("power", of_power)
def _() -> str:
    return "\n".join(
        f"- {line}"
        for line in mutation_testing.summary(results.of_kind(results.read(REPORTS / POWER), results.Planted))
    )
