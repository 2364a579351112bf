"""`qkverify replay`: one stored counterexample again, on the implementation as it is now."""

from __future__ import annotations

from pathlib import Path

from qkverify import probes
from qkverify.contract import Implementation, registry
from qkverify.counterexamples import store
from qkverify.errors import UsageError
from qkverify.verification.checking import Cell, law_book, laws_named, prepare
from qkverify.verification.laws import Law, explain


def replay_counterexample(name: str) -> str:
    """The failure's message, or nothing if the law holds now. Raises UsageError if its law or implementation is gone."""
    record = store.load(name)
    law = _law(record["law"], record.get("law_file", ""))
    implementation = _implementation(record)
    run = prepare(Cell(implementation, record["device"], record["dtype"]))
    run.failing = record["drawn"]
    try:
        law.replay(run, record["drawn"])
    except Exception as broken:
        return explain(broken, law, run, replay=name)
    return ""


def _law(name: str, file: str) -> Law:
    """The law of `properties/`, or the one of its own file."""
    laws = laws_named([name]) or laws_named([name], [file] if Path(file).is_file() else [])
    if not laws:
        raise UsageError.unknown("law", name, [law.name for law in law_book()])
    return laws[0]


def _implementation(record: dict[str, str]) -> Implementation:
    """By its name; else by the function of its file."""
    try:
        return next(
            implementation
            for implementation in probes.find(record["implementation"])
            if implementation.name == record["implementation"]
        )
    except (UsageError, StopIteration):
        declared = registry.registered_by(registry.load_file(record["file"]))
        named = [
            implementation for implementation in declared if implementation.name == record["implementation"]
        ]
        return probes.fitted(named[0]) if named else probes.find(f"{record['file']}:{record['function']}")[0]
