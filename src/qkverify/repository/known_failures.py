"""Failures that a repository knows of, in a TOML file: each an entry with the law, the reason, and where it shows.

    [[known_failure]]
    law = "hidden_keys_do_not_reach_gradients"
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
from qkverify.laws import Law
from qkverify.results import Verdict
from qkverify.verification import Cell, Plan

FILE = (
    "qkverify-known-failures.toml"  # is read where it lies in the working folder or beside the pyproject.toml
)
TABLE = "known_failure"
KEYS = ("law", "implementation", "device", "dtype", "reason", "link")


@dataclass(frozen=True)
class KnownFailure:
    """One entry; `place` names its file, number and line. Empty fields mean every one."""

    place: str
    law: str
    reason: str
    implementation: str = ""
    device: str = ""
    dtype: str = ""
    link: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.link})" if self.link else self.reason

    def speaks_of(self, implementation: str, device: str, dtype: str) -> bool:
        """Whether it covers an implementation on a device in a dtype."""
        named = self.implementation in ("", implementation) or fnmatchcase(
            implementation, self.implementation
        )
        return named and self.device in ("", device) and self.dtype in ("", dtype)

    @property
    def narrowness(self) -> int:
        """How many fields narrow it: of two entries for one verdict the narrower one counts."""
        return sum(map(bool, (self.implementation, self.device, self.dtype)))


def read(path: str | Path) -> tuple[KnownFailure, ...]:
    """The entries of a file. Raises UsageError naming file, entry and line; `check_laws` judges the names of the laws."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the known failures {path} cannot be read: {error}") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
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
            if replace(other, place="", reason="", link="") == replace(entry, place="", reason="", link=""):
                raise UsageError(f"{entry.place}: says the same as {other.place}")
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
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{place}: {key} is {value!r}; it must be a text that is not empty")
    for key in ("law", "reason"):
        if key not in table:
            raise UsageError(f"{place}: {key} is missing; an entry needs law and reason")
    for key, exist in (("device", DEVICES), ("dtype", DTYPES)):
        if table.get(key, exist[0]) not in exist:
            raise UsageError(f"{place}: {UsageError.unknown(key, table[key], exist)}")
    return KnownFailure(place, **table)


def check_laws(entries: Iterable[KnownFailure], laws: Iterable[Law]) -> None:
    """Raise UsageError for an entry whose law there is not."""
    names = {law.name for law in laws}
    for entry in entries:
        if entry.law not in names:
            unknown = UsageError.unknown("law", entry.law, names, listed_by="qkverify list laws")
            raise UsageError(f"{entry.place}: {unknown}\n  the file of a law of your own: --own-laws FILE")


def applied(planned: Plan, entries: Sequence[KnownFailure]) -> Plan:
    """The plan, with each entry as a finding of the cells that it speaks of."""
    return replace(planned, cells=[_known(cell, entries) for cell in planned.cells]) if entries else planned


def _known(cell: Cell, entries: Sequence[KnownFailure]) -> Cell:
    one = cell.implementation
    laws = dict.fromkeys(entry.law for entry in entries)
    mine = [entry_of(entries, law, one.name, cell.device, cell.dtype) for law in laws]
    # Of all keys that `verification.finding` looks for, this one counts first.
    findings = {
        f"{entry.law}[{cell.device}-{cell.dtype}]": Finding(str(entry), listed=entry.place)
        for entry in mine
        if entry
    }
    return (
        replace(cell, implementation=replace(one, findings={**one.findings, **findings}))
        if findings
        else cell
    )


def entry_of(
    entries: Iterable[KnownFailure], law: str, implementation: str, device: str, dtype: str
) -> KnownFailure | None:
    """The narrowest entry that speaks of a law there."""
    mine = [e for e in entries if e.law == law and e.speaks_of(implementation, device, dtype)]
    return max(mine, key=lambda entry: entry.narrowness, default=None)


def holding_again(entries: Sequence[KnownFailure], verdicts: Sequence[Verdict]) -> list[str]:
    """A sentence for each entry that nothing failed for, though its law was judged where it speaks of."""
    said = []
    for entry in entries:
        mine = [v for v in verdicts if entry_of(entries, v.law, v.implementation, v.device, v.dtype) is entry]
        judged = [v for v in mine if v.outcome not in ("not offered", "unavailable")]
        if judged and all(v.outcome == "passed" for v in judged):
            said.append(again(entry.law, entry.place, sum(v.examples for v in judged)))
    return said


def again(law: str, place: str, examples: int) -> str:
    """What is said of an entry that is of no more use."""
    return f"{law} holds again in {examples:,} examples: remove {place}"
