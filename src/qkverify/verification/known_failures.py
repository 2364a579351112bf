"""Failures that a repository knows of, in a TOML file: each an entry with the law, the reason, and where it shows.

    [[known_failure]]
    law = "hidden_keys_do_not_reach_gradients"     # or a list: one mistake often breaks several laws
    dtype = "bfloat16"                  # optional; so are device and implementation (a name as printed, or a pattern)
    reason = "the backward kernel adds the padding; waits for the next release"
    link = "issue 123"                  # optional

An entry becomes a `Finding` of the implementations that it speaks of, like one that is declared in code: its law is still
checked, and its failure is told with the reason and fails no run. An entry whose law holds again is told as well.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qkverify.contract import DEVICES, DTYPES, Finding
from qkverify.errors import UsageError
from qkverify.results import Verdict
from qkverify.verification.checking import Cell, VerificationPlan
from qkverify.verification.laws import Law

FILE = (
    "qkverify-known-failures.toml"  # is read where it lies in the working folder or beside the pyproject.toml
)
TABLE = "known_failure"
KEYS = ("law", "implementation", "device", "dtype", "reason", "link")


@dataclass(frozen=True)
class KnownFailure:
    """One entry; `place` names its file, number and line. Empty fields mean every one."""

    place: str
    laws: tuple[str, ...]
    reason: str
    implementation: str = ""
    device: str = ""
    dtype: str = ""
    link: str = ""

    def __str__(self) -> str:
        return f"{self.reason}, see {self.link}" if self.link else self.reason

    def speaks_of(self, law: str, implementation: str, device: str, dtype: str) -> bool:
        """Whether it covers a law on an implementation, device and dtype."""
        named = self.implementation in ("", implementation) or fnmatchcase(
            implementation, self.implementation
        )
        return law in self.laws and named and self.device in ("", device) and self.dtype in ("", dtype)

    @property
    def where(self) -> tuple[str, str, str]:
        """What narrows it; of two entries for one verdict the one with more of these counts."""
        return self.implementation, self.device, self.dtype


def read(path: str | Path) -> tuple[KnownFailure, ...]:
    """The entries of a file. Raises UsageError naming file, entry and line; `check_laws` judges the names of the laws."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the known failures {path} cannot be read: {error}") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    for key in content:
        if key != TABLE:
            raise UsageError(f"{path}: {UsageError.unknown('table', key, [TABLE])}")
    tables = content.get(TABLE, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: each known failure is a table of its own, headed [[{TABLE}]]")
    entries = tuple(
        _entry(table, place) for table, place in zip(tables, _places(path, text, len(tables)), strict=True)
    )
    for number, entry in enumerate(entries):
        for other in entries[:number]:
            twice = sorted(set(entry.laws) & set(other.laws))
            if twice and entry.where == other.where:
                raise UsageError(
                    f"{entry.place}: {other.place} names {', '.join(twice)} too, for the same implementations, devices and dtypes"
                )
    return entries


def _places(path: str | Path, text: str, count: int) -> list[str]:
    """ "FILE, entry 2 (line 9)" for each entry; without lines where the headings are written in another way."""
    lines = [n for n, line in enumerate(text.splitlines(), 1) if re.match(rf"\s*\[\[\s*{TABLE}\s*\]\]", line)]
    known = len(lines) == count
    return [f"{path}, entry {i + 1}" + (f" (line {lines[i]})" if known else "") for i in range(count)]


def _entry(table: dict[str, Any], place: str) -> KnownFailure:
    for key, value in table.items():
        if key not in KEYS:
            raise UsageError(f"{place}: {UsageError.unknown('key', key, KEYS)}")
        words = value if key == "law" and isinstance(value, list) and value else [value]
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise UsageError(f"{place}: {key} is {value!r}; it must be a string that is not empty")
    for key in ("law", "reason"):
        if key not in table:
            raise UsageError(f"{place}: {key} is missing; an entry needs law and reason")
    for key, exist in (("device", DEVICES), ("dtype", DTYPES)):
        if table.get(key, exist[0]) not in exist:
            raise UsageError(f"{place}: {UsageError.unknown(key, table[key], exist)}")
    rest = dict(table)
    law = rest.pop("law")
    return KnownFailure(place, tuple(law) if isinstance(law, list) else (law,), **rest)


def check_laws(entries: Iterable[KnownFailure], laws: Iterable[Law]) -> None:
    """Raise UsageError for an entry whose law there is not."""
    names = {law.name for law in laws}
    for entry in entries:
        for law in entry.laws:
            if law not in names:
                unknown = UsageError.unknown("law", law, names, listed_by="qkverify list laws")
                raise UsageError(
                    f"{entry.place}: {unknown}\n  the file of a law of your own: --own-laws FILE"
                )


def applied(planned: VerificationPlan, entries: Sequence[KnownFailure]) -> VerificationPlan:
    """The plan, with each entry as a finding of the cells that it speaks of."""
    return replace(planned, cells=[_known(cell, entries) for cell in planned.cells]) if entries else planned


def _known(cell: Cell, entries: Sequence[KnownFailure]) -> Cell:
    implementation = cell.implementation
    findings = {}
    for law in dict.fromkeys(law for entry in entries for law in entry.laws):
        if entry := entry_of(entries, law, implementation.name, cell.device, cell.dtype):
            # Of all keys that `verification.finding` looks for, this one counts first.
            findings[f"{law}[{cell.device}-{cell.dtype}]"] = Finding(str(entry), listed=entry.place)
    return (
        replace(
            cell, implementation=replace(implementation, findings={**implementation.findings, **findings})
        )
        if findings
        else cell
    )


def entry_of(
    entries: Iterable[KnownFailure], law: str, implementation: str, device: str, dtype: str
) -> KnownFailure | None:
    """The narrowest entry that speaks of a law there."""
    mine = [entry for entry in entries if entry.speaks_of(law, implementation, device, dtype)]
    return max(mine, key=lambda entry: sum(map(bool, entry.where)), default=None)


def holding_again(entries: Sequence[KnownFailure], verdicts: Sequence[Verdict]) -> list[str]:
    """A sentence for each entry that nothing failed for, though its laws were judged where it speaks of."""
    said = []
    for entry in entries:
        mine = [v for v in verdicts if entry_of(entries, v.law, v.implementation, v.device, v.dtype) is entry]
        judged = [v for v in mine if v.outcome not in ("not offered", "unavailable")]
        if judged and all(v.outcome == "passed" for v in judged):
            laws = ", ".join(dict.fromkeys(v.law for v in judged))
            held = f"holds again in {sum(v.examples for v in judged):,} examples: {laws}"
            said.append(f"{held}; if it does with --profile thorough as well, remove {entry.place}")
    return said
