"""`qkverify replay`: one stored counterexample again, on the implementation as it is now."""

from __future__ import annotations

from qkverify import registry, replays
from qkverify.contract import Implementation
from qkverify.errors import UsageError
from qkverify.laws import explain
from qkverify.verification import Cell, law_book, prepare


def again(name: str) -> str:
    """The failure's message, or nothing if the law holds now. Raises UsageError if its law or implementation is gone."""
    record = replays.load(name)
    law = next((law for law in law_book() if law.name == record["law"]), None)
    if law is None:
        raise UsageError.unknown("law", record["law"], [law.name for law in law_book()])
    one = _implementation(record)
    run = prepare(Cell(one, record["device"], record["dtype"]))
    run.failing = record["drawn"]
    try:
        law.replay(run, record["drawn"])
    except Exception as broken:
        return explain(broken, law, run, replay=name)
    return ""


def _implementation(record: dict[str, str]) -> Implementation:
    """By its name; else by the function of its file."""
    try:
        return next(
            one for one in registry.find(record["implementation"]) if one.name == record["implementation"]
        )
    except (UsageError, StopIteration):
        declared = registry.registered_by(registry.load_file(record["file"]))
        named = [one for one in declared if one.name == record["implementation"]]
        return named[0] if named else registry.find(f"{record['file']}:{record['function']}")[0]
