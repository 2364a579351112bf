"""Counterexamples on disk: `.qkverify/<id>.json` in the working folder holds what a failing law was given.

The arrays stand in it with their dtype, shape and memory layout, so a replay is the same call, whatever the strategies have
become since. The id is a hash of the content. Beside it lies, where one can be made, `<id>.py`: the same failure as a script
without qkverify (see `scripts`).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from qkverify import foreign_text
from qkverify.contract import DEVICES, DTYPES, adapters
from qkverify.counterexamples import scripts
from qkverify.errors import UsageError
from qkverify.problem.attention_problem import Problem
from qkverify.strategies.sequences import Sequences

if TYPE_CHECKING:
    from qkverify.runs.run import Run
    from qkverify.verification.laws import Law

FOLDER = Path(".qkverify")
NAME = re.compile(r"[0-9a-f]{8}")  # of a counterexample
KEPT = 500  # counterexamples in the folder; the oldest go first


def store(law: Law, run: Run, *, scripted: bool = True) -> str:
    """Write the failing example of a run and return its id; nothing where the folder cannot be written.

    Without `scripted` no script is made: making one calls the implementation.
    """
    implementation = run.implementation
    function = getattr(implementation.function, "__name__", "") or implementation.name.rpartition(":")[2]
    record = {
        "law": law.name, "law_file": law.file, "implementation": implementation.name,
        "file": implementation.home, "function": function,
        **({"adapters": adapters.written(implementation.adapters)} if implementation.adapters else {}),
        "device": run.device, "dtype": run.dtype,
        "drawn": {name: encode(value) for name, value in run.failing.items()},
    }  # fmt: skip
    text = json.dumps(record, indent=1)
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    try:
        ignored(FOLDER)
        (FOLDER / f"{name}.json").write_text(text)
        FOLDER.joinpath(f"{name}.py").unlink(missing_ok=True)  # of the function as it was then
        written = scripts.script(law, run) if scripted else None
        if written:
            FOLDER.joinpath(f"{name}.py").write_text(written, "utf-8")
        forget_old(FOLDER, KEPT)
    except OSError:
        return ""
    return name


def forget_old(folder: Path, kept: int) -> None:
    """Remove the oldest counterexamples of a folder and their scripts, so that `kept` of them stay. Other files stay too."""
    records = [path for path in folder.glob("*.json") if NAME.fullmatch(path.stem)]
    if len(records) <= kept:
        return
    for path in sorted(records, key=lambda path: path.stat().st_mtime_ns)[:-kept]:
        path.unlink(missing_ok=True)  # another process may have done it
        path.with_suffix(".py").unlink(missing_ok=True)


def ignored(folder: Path) -> Path:
    """The folder, made where it is missing, with a .gitignore of its own: nothing in it is for a repository."""
    folder.mkdir(parents=True, exist_ok=True)
    rule = folder / ".gitignore"
    if not rule.exists():
        rule.write_text("*\n")
    return folder


def script_of(name: str) -> Path | None:
    """The script that was written for an id, if there is one."""
    path = FOLDER / f"{name}.py"
    return path if path.is_file() else None


def is_file(name: str) -> bool:
    """Whether a replay is asked for by a path: such a file may come from anybody, and no file that it names is imported."""
    return name.endswith(".json")


def load(name: str) -> dict[str, Any]:
    """The record of an id (or of a file). Raises UsageError naming the ids that exist, or what is wrong with the file."""
    path = Path(name) if is_file(name) else FOLDER / f"{name}.json"
    if not (path.is_file() if is_file(name) else NAME.fullmatch(name) and path.is_file()):
        raise UsageError.unknown("replay", name, [p.stem for p in FOLDER.glob("*.json")])
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        _check_words(record)
        record["drawn"] = {key: decode(value) for key, value in record["drawn"].items()}
        _check_dtypes(record)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        why = (
            "it is nested too deeply" if isinstance(error, RecursionError) else foreign_text.shown_line(error)
        )
        why = f"it has no {why}" if isinstance(error, KeyError) else why
        raise UsageError(f"{path} is not a stored counterexample: {why}") from error
    return record


WORDS = ("law", "implementation", "device", "dtype", "file", "function")  # of a record


def _check_words(record: Any) -> None:
    if not isinstance(record, dict):
        raise TypeError(f"it holds a {type(record).__name__}, not an object")
    for word in (*WORDS, "drawn"):
        if not isinstance(record[word], dict if word == "drawn" else str):
            raise TypeError(f"its {word} is a {type(record[word]).__name__}")
    if not isinstance(record.get("adapters", ""), str):
        raise TypeError(f"its adapters are a {type(record['adapters']).__name__}")
    for word, every in (("device", DEVICES), ("dtype", DTYPES)):
        if record[word] not in every:
            raise ValueError(f"its {word} is {record[word]!r}, and there are {', '.join(every)}")


def _check_dtypes(record: dict[str, Any]) -> None:
    for name, value in record["drawn"].items():
        if isinstance(value, Problem) and value.query.dtype.name != record["dtype"]:
            raise ValueError(
                f"its {name} is of dtype {value.query.dtype.name}, and its dtype {record['dtype']}"
            )


def encode(value: Any) -> Any:
    """A drawn argument as JSON; whatever is no array, problem or plain number is written as its text."""
    if isinstance(value, Problem):
        return {"problem": {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, Sequences):
        return {"sequences": {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, np.ndarray):
        return {
            "dtype": value.dtype.name,
            "shape": list(value.shape),
            "data": base64.b64encode(value.tobytes()).decode(),
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(x) for x in value]}
    if isinstance(value, dict):
        return {"dict": {key: encode(x) for key, x in value.items()}}
    return value if isinstance(value, int | float | str | bool | None) else {"text": repr(value)}


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if not isinstance(value, dict):
        return value
    if "problem" in value:
        return Problem(**{name: decode(x) for name, x in value["problem"].items()})
    if "sequences" in value:
        return Sequences(**{name: decode(x) for name, x in value["sequences"].items()})
    if "data" in value:
        dtype = np.dtype(ml_dtypes.bfloat16 if value["dtype"] == "bfloat16" else value["dtype"])
        if dtype.kind not in "biufV":
            raise ValueError(f"an array of dtype {dtype} is none of a call")
        return np.frombuffer(base64.b64decode(value["data"]), dtype).reshape(value["shape"]).copy()
    if "tuple" in value:
        return tuple(decode(x) for x in value["tuple"])
    if "list" in value:
        return [decode(x) for x in value["list"]]
    if "dict" in value:
        return {key: decode(x) for key, x in value["dict"].items()}
    raise TypeError(f"an argument was stored as text only: {value.get('text')}")
