"""Results for other tools: a module of `file_formats` is a format, under its own name with hyphens.

A module has `ABOUT` (one line), `SUFFIXES` (by which it is guessed), `OFFERS` (what it can hold: names of `tables`, the first
being what is meant where nothing is said) and `export(records, what) -> bytes`; `BINARY = True` keeps it off a terminal. A new
format is a new module, and no other file changes.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from qkverify.errors import UsageError, did_you_mean
from qkverify.exports import file_formats
from qkverify.exports.tables import all_tables, columns_of, filled, subjects
from qkverify.report import RESULTS
from qkverify.report.markdown import table as markdown_table
from qkverify.results import Record, RunStart, read


def write(results: Path, to: str | None, what: str | None, output: Path | None) -> None:
    """The command `qkverify export`: to `output`, or to standard output. UsageError says what there is instead."""
    module = format_named(to, output)
    subject = subject_of(module, what)
    records, problems = load(results)
    for problem in problems:
        print(f"qkverify: {problem}", file=sys.stderr)
    if subject in all_tables() and not filled(all_tables()[subject], records):
        raise UsageError(f"{results} has no {subject}; it has {counts(records)}")
    if output is None and getattr(module, "BINARY", False):
        raise UsageError(f"{name_of(module)} is a binary format: name the file to write with --output FILE")
    text: bytes = module.export(records, subject)
    if output is None:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        return
    _put(text, output)


def save(records: Sequence[Record], output: Path, to: str) -> None:
    """Records that are at hand, written to a file in a format."""
    module = formats()[to]
    _put(module.export(records, subject_of(module, None)), output)


def explained(what: str | None) -> str:
    """The columns of a table with their types and meanings, as a Markdown table; of all tables where none is named."""
    known = all_tables()
    if what is not None and what not in known:
        raise UsageError.unknown("table", what, known)
    parts = []
    for name in [what] if what else subjects():
        rows = [[column.name, column.kind.__name__, column.about] for column in columns_of(known[name])]
        parts.append(f"{name}: {known[name].about}\n\n{markdown_table(['column', 'type', 'meaning'], rows)}")
    return "\n\n".join(parts)


def formats() -> dict[str, ModuleType]:
    """Every format by its name."""
    return dict(_formats())


def format_named(name: str | None, output: Path | None) -> ModuleType:
    """The format of that name, or the one that the output's suffix says; a UsageError names those that there are."""
    known = formats()
    if name is not None:
        if name not in known:
            raise UsageError.unknown("format", name, known)
        return known[name]
    suffix = output.suffix.lower() if output else ""
    matching = [module for module in known.values() if suffix in module.SUFFIXES]
    if len(matching) != 1:
        of = f"the ending of {output} is not that of a format" if output else "no format was named"
        listed = "\n".join(
            f"  {known_name:17} {', '.join(module.SUFFIXES):15} {module.ABOUT}"
            for known_name, module in known.items()
        )
        raise UsageError(f"{of}; choose one with --to:\n{listed}")
    return matching[0]


def subject_of(module: ModuleType, what: str | None) -> str:
    """What is exported: `what` where the format has it."""
    offers: Sequence[str] = module.OFFERS
    if what is not None and what not in offers:
        hint = f" {did_you_mean(what, offers)}" if len(offers) > 1 else ""
        raise UsageError(
            f"the format {name_of(module)} has no table {what!r}.{hint.rstrip()}\n  it has: {', '.join(offers)}"
        )
    return what or offers[0]


def load(path: Path) -> tuple[list[Record], list[str]]:
    """The records of a results file, of the one in a folder of a report, or of all in another folder (`history`, say), by name;
    lines that are none, in words."""
    whole = path / RESULTS if (path / RESULTS).is_file() else path
    files = sorted(whole.glob("*.jsonl")) if whole.is_dir() else [whole]
    if not files or not files[0].is_file():
        raise UsageError(
            f"{path} holds no results; this command writes some: qkverify verify TARGET --results FILE"
        )
    readings = [read(file, strict=False) for file in files]
    records = [record for reading in readings for record in reading.records]
    return records, [f"left out: {problem}" for reading in readings for problem in reading.problems]


def counts(records: Sequence[Record]) -> str:
    """What there is, in words, for whoever asked for what is not there."""
    kinds = [str(record.__struct_config__.tag) for record in records if not isinstance(record, RunStart)]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "nothing"


def name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2].replace("_", "-")


def _put(text: bytes, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(text)


@cache
def _formats() -> tuple[tuple[str, ModuleType], ...]:
    names = (module.name for module in pkgutil.iter_modules(file_formats.__path__))
    modules = (importlib.import_module(f"{file_formats.__name__}.{name}") for name in names)
    return tuple((name_of(module), module) for module in modules)
