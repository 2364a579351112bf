"""`qkverify report --run mine.py:attention --against torch_sdpa-flash`: a report of a few implementations, for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qkverify import probes
from qkverify.cli import full_run
from qkverify.contract import Implementation, frameworks, registry
from qkverify.errors import UsageError
from qkverify.report.overview import DEFAULTS
from qkverify.results import Record, Verdict
from qkverify.results.fingerprint import slug


class OwnReport(NamedTuple):
    """Targets to report on, and the target that they are compared with; "" if the platform's default cannot run here."""

    targets: tuple[str, ...]
    against: str

    @property
    def everything(self) -> tuple[str, ...]:
        return (*self.targets, self.against) if self.against else self.targets


def folder_or_targets(words: Sequence[str]) -> tuple[Path | None, tuple[str, ...]]:
    """What the arguments of `report` mean: the folder of a report, or implementations. Raises UsageError of both at once."""
    targets = tuple(word for word in words if _is_target(word))
    folders = [word for word in words if word not in targets]
    if len(folders) > 1 or (folders and targets):
        raise UsageError(
            f"{', '.join(words)}: one folder of a report, or implementations, and {', '.join(folders)} is no implementation\n"
            "  an implementation is a name, module:function or path/file.py:function"
        )
    return (Path(folders[0]) if folders else None), targets


def _is_target(word: str) -> bool:
    if ":" in word or word.endswith(".py"):
        return True
    return not Path(word).is_dir() and word in {
        implementation.name for implementation in registry.load_folder()
    }


def gathered(targets: Sequence[str], against: str, devices: Sequence[str], run: bool) -> OwnReport | None:
    """The report that is asked for; None if it is that of everything. Raises UsageError where that makes no sense."""
    if not targets:
        if against:
            raise UsageError(
                f"--against {against} compares an implementation: name it, as in qkverify report --run mine.py:attention "
                f"--against {against}"
            )
        return None
    if not run:
        raise UsageError(f"there is no recorded report of {', '.join(targets)}: --run makes one")
    implementations = [implementation for target in targets for implementation in probes.find(target)]
    return OwnReport(tuple(targets), _name_of(against) if against else _default(implementations, devices))


def _name_of(against: str) -> str:
    """The baseline, which must be one implementation."""
    implementations = probes.find(against)
    if len(implementations) != 1:
        names = ", ".join(implementation.name for implementation in implementations)
        raise UsageError(
            f"--against {against} means several implementations, and one is compared with: {names}"
        )
    return against


def _default(implementations: Sequence[Implementation], devices: Sequence[str]) -> str:
    """The platform's own attention, where it runs and is not what is reported on."""
    if frameworks.missing("torch") is not None:
        return ""
    names = DEFAULTS["cuda" if "cuda" in (devices or (full_run.best_device(),)) else "cpu"]
    return names[0] if names[0] not in {implementation.name for implementation in implementations} else ""


def folder_of(report: OwnReport, reports: Path) -> Path:
    """Where the report goes: a folder with the implementation's name, in the usual folder of reports."""
    return reports / slug(
        "-".join(implementation.name for target in report.targets for implementation in probes.find(target))
    )


def name_of(target: str) -> str:
    """The name under which a target is recorded; "" of no target."""
    return probes.find(target)[0].name if target else ""


def without_baseline(records: Sequence[Record], report: OwnReport) -> list[Record]:
    """What the exit code is about: laws that the baseline breaks are no fault of the implementation."""
    baseline = name_of(report.against)
    return [r for r in records if not (isinstance(r, Verdict) and r.implementation == baseline)]
