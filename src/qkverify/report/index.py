"""The page over all devices: a card for each results file, and the times of the cases that several of them ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qkverify import results
from qkverify.errors import raised
from qkverify.report import headline, timings
from qkverify.report.model import DIRECTIONS, DTYPES, Report, in_order
from qkverify.report.templating import fill
from qkverify.timing import statistics

FEWEST_DEVICES = 2  # one device compares with nothing


class Entry(NamedTuple):
    """One device's folder; `problem` says why its file cannot be read."""

    folder: str
    report: Report | None
    headline: headline.Headline | None
    problem: str = ""


class SharedCase(NamedTuple):
    """One implementation on one case: seconds by folder, and who is fastest there."""

    implementation: str
    seconds: dict[str, float]
    fastest: frozenset[str]


class DeviceComparison(NamedTuple):
    """One case in one dtype and direction on the devices that ran it."""

    case: str
    shape: str
    dtype: str
    direction: str
    lines: list[SharedCase]


def html(paths: Sequence[Path]) -> str:
    entries = [_entry(path) for path in paths]
    reports = {entry.folder: entry.report for entry in entries if entry.report}
    compared = comparisons(reports)
    ran = [f for f in reports if any(f in line.seconds for c in compared for line in c.lines)]
    controlled = [folder for folder in ran if reports[folder].controls]
    noisy = [folder for folder in controlled if not statistics.is_quiet(reports[folder].controls)]
    names = {"entries": entries, "comparisons": compared, "reports": reports, "ran": ran}
    return fill("index.jinja", **names, noisy=noisy, quiet=[f for f in controlled if f not in noisy])


def comparisons(reports: dict[str, Report]) -> list[DeviceComparison]:
    """Every case that at least two devices timed, with the implementations that at least two of them timed.

    What ran elsewhere (another GPU's kernel) is on that device's own page.
    """
    medians: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    shapes: dict[str, str] = {}
    for folder, report in reports.items():
        for t in report.timings:
            if t.seconds:
                shapes.setdefault(t.case, timings.shape(t))
                by_name = medians.setdefault((t.case, t.dtype, t.direction), {})
                by_name.setdefault(t.implementation, {})[folder] = statistics.median(t.seconds)
    cases, dtypes = (
        list(dict.fromkeys(c for c, _, _ in medians)),
        in_order({d for _, d, _ in medians}, DTYPES),
    )
    compared = []
    for key in sorted(medians, key=lambda k: (cases.index(k[0]), dtypes.index(k[1]), DIRECTIONS.index(k[2]))):
        shared = {name: s for name, s in medians[key].items() if len(s) >= FEWEST_DEVICES}
        if shared:
            compared.append(DeviceComparison(key[0], shapes[key[0]], *key[1:], _lines(shared)))
    return compared


def _lines(shared: dict[str, dict[str, float]]) -> list[SharedCase]:
    """By the time on the first device that ran it; the fastest of each device is marked."""
    folders = dict.fromkeys(folder for seconds in shared.values() for folder in seconds)
    best = {folder: min(s[folder] for s in shared.values() if folder in s) for folder in folders}
    lines = [
        SharedCase(name, seconds, frozenset(f for f, value in seconds.items() if value == best[f]))
        for name, seconds in shared.items()
    ]
    return sorted(lines, key=lambda line: min(line.seconds.values()))


def _entry(path: Path) -> Entry:
    try:
        report = Report(results.read(path))
        return Entry(path.parent.name, report, headline.of(report))
    except results.ResultsError as error:
        return Entry(path.parent.name, None, None, f"{path.name}, line {error.line}: {error.why}")
    except Exception as error:  # records that nobody foresaw: the other devices are shown all the same
        return Entry(path.parent.name, None, None, f"{path.name}: no page can be made of it: {raised(error)}")
