"""Where and how the numbers were made: what decides comparability, what is only recorded, and the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from qkverify import units
from qkverify.report.markdown import table
from qkverify.report.model import Report
from qkverify.report.templating import fill
from qkverify.results import Conditions, Control
from qkverify.results.fingerprint import alike
from qkverify.timing import statistics

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
    return fill(
        "environment.jinja",
        report=report,
        parts=parts,
        changed=changed(report),
        watched=watched(report),
        interval=interval,
    )


def interval(control: Control) -> str:
    """The interval of a control, or that there is none."""
    known = statistics.is_told(statistics.Interval(control.ratio, control.low, control.high))
    return f"{control.low:.3f} .. {control.high:.3f}" if known else statistics.TOO_FEW


class Watched(NamedTuple):
    """One device while it was timed: rounds in all, those in which it was held back by their cause, and its extremes."""

    device: str
    rounds: int
    disturbed: dict[str, int]
    mhz: tuple[float, float] | None
    celsius: float | None
    watts: float | None
    load: float | None

    @property
    def facts(self) -> str:
        """What the device told, in words."""
        words = [
            *([f"{self.mhz[0]:.0f} .. {self.mhz[1]:.0f} MHz"] if self.mhz else []),
            *([f"up to {self.celsius:.0f} °C"] if self.celsius is not None else []),
            *([f"up to {self.watts:.0f} W"] if self.watts is not None else []),
            *([f"load up to {self.load:.1f}"] if self.load is not None else []),
        ]
        return ", ".join(words)

    @property
    def held_back(self) -> str:
        """Rounds by cause, in words."""
        causes = [
            f"{cause}: {count:,} ({units.percent(count / self.rounds)})"
            for cause, count in self.disturbed.items()
        ]
        return "; ".join(causes) or "none"


def watched(report: Report) -> list[Watched]:
    """A line for each device that was watched."""
    lines = []
    for device in dict.fromkeys(c.device for c in report.conditions):
        mine = [c for c in report.conditions if c.device == device]
        causes: Counter[str] = Counter()
        for conditions in mine:
            causes.update(conditions.disturbed)
        low = [c.mhz_low for c in mine if c.mhz_low is not None]
        high = [c.mhz_high for c in mine if c.mhz_high is not None]
        extremes = [
            max((v for c in mine if (v := getattr(c, n)) is not None), default=None)
            for n in ("celsius", "watts", "load")
        ]
        rounds = sum(c.rounds for c in mine)
        lines.append(
            Watched(device, rounds, dict(causes), (min(low), max(high)) if low and high else None, *extremes)
        )
    return lines


def _greatest(conditions: Sequence[Conditions], fact: str) -> float | None:
    return max(
        (value for condition in conditions if (value := getattr(condition, fact)) is not None), default=None
    )


def changed(report: Report) -> list[str]:
    """Identity facts that differ between the runs of this file: such records should not be compared."""
    identities = [run.fingerprint.identity for run in report.runs]
    names = dict.fromkeys(name for identity in identities for name in identity)
    first, *others = identities or [{}]
    return [n for n in names if any(not alike(n, first.get(n), other.get(n)) for other in others)]


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
    watching = [
        f"- {device.device} while it was timed: {device.rounds:,} rounds, held back in: {device.held_back}"
        + (f"; {device.facts}" if device.facts else "")
        for device in watched(report)
    ]
    return table(["fact", "value"], rows) + "\n\n" + "\n".join([*watching, *runs])
