"""What `qkverify compare --format markdown` prints: the comment of a pull request."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from qkverify import units
from qkverify.report import finding_links
from qkverify.report.markdown import code, plain, table
from qkverify.results import Timing
from qkverify.timing import marks, statistics
from qkverify.timing.comparison import ComparedCase, Result
from qkverify.timing.statistics import Comparison, Interval

SIGNS = {"slower": "🔴", "faster": "🟢", "same": "⚪", "undecided": "⚪"}
HEADER = ("case", "", "candidate", "baseline", "ratio of times", "95 % interval", "verdict")


def comment(compared: Result, candidate: str, baseline: str, notes: Sequence[str] = ()) -> str:
    """Heading, the answer over all cases, a row for each case, then what is known against whom, and `notes`."""
    cases = "the one case" if len(compared.cases) == 1 else f"{len(compared.cases)} cases"
    parts = [
        f"### {code(candidate)} against {code(baseline)}",
        f"{SIGNS[compared.overall.word]} **{_overall(compared)}** over {cases}{_with_interval(compared.overall)}.",
        table(HEADER, [_row(case) for case in compared.cases]),
        "\n".join(
            f"- {finding_links.Links().markdown(plain(line))}"
            for line in [*_reading(compared), *_known(compared), *notes]
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _row(case: ComparedCase) -> list[str]:
    mine, interval = case.candidate, case.comparison.interval
    where = f"{mine.direction}, {mine.dtype}, {mine.device}"
    times = [
        units.seconds(statistics.median(statistics.drop_disturbed_rounds(t))) for t in (mine, case.baseline)
    ]
    name = "" if mine.implementation != case.baseline.implementation else f"{mine.implementation}, "
    word = f"{SIGNS[case.comparison.word]} {case.comparison.word}"
    return [code(mine.case), name + where, *times, f"{interval.ratio:.3f}", _edges(interval), word]


def _said(comparison: Comparison) -> str:
    """ "1.56 × slower", "the same time", "undecided"."""
    ratio = comparison.interval.ratio
    if comparison.word in ("slower", "faster"):
        return f"{units.ratio(max(ratio, 1 / ratio))} × {comparison.word}"
    return {"same": "The same time", "undecided": f"Undecided ({ratio:.3f} × the time)"}[comparison.word]


def _overall(compared: Result) -> str:
    """The answer over all cases; without one that they have in common, how many have which."""
    if math.isfinite(compared.overall.interval.ratio):
        return _said(compared.overall)
    words = Counter(case.comparison.word for case in compared.cases)
    return ", ".join(f"{count} {word}" for word, count in words.items())


def _with_interval(comparison: Comparison) -> str:
    """The interval as factors of the word; nothing if there is none."""
    if not statistics.is_told(comparison.interval):
        return ""
    low, high = comparison.interval.low, comparison.interval.high
    if comparison.word == "faster":
        low, high = 1 / high, 1 / low
    return f" (95 %: {units.ratio(low)} .. {units.ratio(high)})"


def _edges(interval: Interval) -> str:
    return (
        f"{interval.low:.3f} .. {interval.high:.3f}" if statistics.is_told(interval) else "too few processes"
    )


def _reading(compared: Result) -> list[str]:
    """How the words are meant, said where they stand."""
    lines = ["A ratio of times over 1 is slower than the baseline."]
    if any(case.comparison.word == "undecided" for case in compared.cases):
        lines.append(
            "Undecided: the difference is too close to the noise of this measurement to call it one."
        )
    return lines


def _known(compared: Result) -> list[str]:
    """What laws and findings say against what was timed, each once."""
    timed: Iterable[Timing] = (t for case in compared.cases for t in (case.candidate, case.baseline))
    said: dict[str, dict[str, None]] = {}
    for timing in timed:
        for mark in (mark for mark in timing.marks if mark.kind != "not verified"):
            said.setdefault(marks.words(mark), {})[timing.implementation] = None
    return [f"{', '.join(names)}: {words}" for words, names in said.items()]
