"""`qkverify replay`: one stored counterexample again, on the implementation as it is now."""

from __future__ import annotations

from pathlib import Path

from qkverify import probes
from qkverify.contract import Implementation, registry
from qkverify.counterexamples import store
from qkverify.errors import UsageError
from qkverify.verification.checking import Cell, law_book, laws_named, prepare
from qkverify.verification.laws import Law, explain


def replay_counterexample(name: str, target: str = "") -> str:
    """The failure's message, or nothing if the law holds now; as `replayed_cell`."""
    return replayed_cell(name, target)[0]


def replayed_cell(name: str, target: str = "") -> tuple[str, Cell]:
    """The failure's message, or nothing if the law holds now; of `target`, or of the implementation that the record names. And
    the cell that it was checked on.

    Of a record that is given as a file, only names are believed: an implementation of this package or `target`, a law of
    `properties/`. Raises UsageError if the law or the implementation is gone.
    """
    record = store.load(name)
    law = _law(record["law"], "" if store.is_file(name) else str(record.get("law_file", "")))
    if record["drawn"].keys() != law.arguments.keys():
        raise UsageError(f"{name} holds {', '.join(record['drawn']) or 'no arguments'}; the law {law.name} is about "
                         f"{', '.join(law.arguments)}")  # fmt: skip
    implementation = _named(target, record) if target else _recorded(name, record)
    cell = Cell(implementation, record["device"], record["dtype"], target=f"replay of {name}")
    run = prepare(cell)
    run.failing = record["drawn"]
    try:
        law.replay(run, record["drawn"])
    except Exception as broken:
        return explain(broken, law, run, replay=name), cell
    return "", cell


def _law(name: str, file: str) -> Law:
    """The law of `properties/`, or the one of its own file."""
    laws = laws_named([name]) or laws_named([name], [file] if Path(file).is_file() else [])
    if not laws:
        raise UsageError.unknown("law", name, [law.name for law in law_book()])
    return laws[0]


def _named(target: str, record: dict[str, str]) -> Implementation:
    """The implementation of a target; of several the one that the record names."""
    implementations = probes.find(target)
    named = [candidate for candidate in implementations if candidate.name == record["implementation"]]
    return (named or implementations)[0]


def _recorded(name: str, record: dict[str, str]) -> Implementation:
    """By its name; of a record that this folder keeps, by its file first, as another process finds it."""
    if store.is_file(name):
        ours = [known for known in registry.load_folder() if known.name == record["implementation"]]
        if not ours:
            raise UsageError(f"{name} is about {record['implementation']}, which is none of this package's implementations\n"
                             f"  name the function: qkverify replay {name} path/file.py:function")  # fmt: skip
        return probes.fitted(ours[0])
    return probes.reload_implementation(
        record["implementation"], record["file"], record["function"], record.get("adapters", "")
    )
