"""Workloads in TOML: the shipped table, `benchmarks/workloads/<family>.toml`, and files of a user's own.

A table is a workload, and its keys are the fields of `Workload`. What a table holds goes for the tables inside
it, so that a model's heads are written once for its prefill and its decoding: `[llama3-8b.decode]` is
`llama3-8b-decode`, and only the innermost tables are workloads. A list where one value belongs makes a
series, named by its values. `benchmarks/workloads/example.toml` shows every key.

Whatever is wrong is a UsageError that names file, table, key, what was given and what is allowed.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from qkverify.errors import UsageError
from qkverify.problem import activations
from qkverify.timing.workloads import Workload

OPEN = "open"  # the side of a window that has no end; TOML has no null
DEEPEST, MOST, LARGEST = 20, 10_000, 2**31  # tables in tables, workloads of a table, one size
EXAMPLE = "example.toml"  # documents the form, and is no part of the table
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def shipped() -> list[Workload]:
    """The workloads of all files beside the benchmarks, file by file."""
    workloads = [
        workload
        for path in sorted(folder().glob("*.toml"))
        if path.name != EXAMPLE
        for workload in read(path)
    ]
    _distinct(workloads, str(folder()))
    return workloads


def folder() -> Path:
    """Where the shipped files are: in a checkout as in an installed package."""
    return Path(importlib.import_module("qkverify.benchmarks").__path__[0]) / "workloads"


def read(path: Path) -> list[Workload]:
    """The workloads of one file, in its order. Raises UsageError for whatever is wrong with it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}") from error
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply") from None
    tables = _innermost(content, {}, ())
    workloads = [workload for where, table in tables for workload in _series(path, where, table)]
    if not workloads:
        raise UsageError(
            f"{path} has no workload: it needs a table, such as [mine], with the keys {_words(_required())}"
        )
    _distinct(workloads, str(path))
    return workloads


def _innermost(
    table: Mapping[str, Any], inherited: Mapping[str, Any], where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The tables that have no table inside, with what they inherit."""
    if len(where) > DEEPEST:
        raise UsageError(
            f"table [{'.'.join(where[:3])}...]: tables stand at most {DEEPEST} deep in one another"
        )
    inside = {key: value for key, value in table.items() if isinstance(value, dict)}
    settings = {**inherited, **{key: value for key, value in table.items() if key not in inside}}
    for key, value in inside.items():
        yield from _innermost(value, settings, (*where, key))
    if where and not inside:
        yield where, settings


def _series(path: Path, where: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[Workload]:
    """The workload of a table, or several where it has lists for single values."""
    place, name = f"{path}, table [{'.'.join(where)}]", "-".join(where)
    if not NAME.fullmatch(name):
        raise UsageError(f"{place}: the name {name!r} may only have letters, digits and the signs . _ + -")
    unknown = next((key for key in table if key not in _hints()), None)
    if unknown is not None:
        raise UsageError(f"{place}: {UsageError.unknown('key', unknown, _hints())}")
    missing = [key for key in _required() if key not in table]
    if missing:
        raise UsageError(f"{place}: {_words(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    lists = {key: value for key, value in table.items() if isinstance(value, list) and not _is_tuple(key)}
    count = math.prod(map(len, lists.values()))
    if count > MOST:
        raise UsageError(
            f"{place}: the lists of {_words(lists)} make {count:,} workloads; a table may make {MOST:,}"
        )
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        checked = {key: _checked(place, key, value) for key, value in {**table, **chosen}.items()}
        workload = Workload(**{"source": path.name, **checked, "name": "-".join([name, *map(str, values)])})
        wrong = inconsistency(workload)
        if wrong is not None:
            raise UsageError(f"{place}: {wrong}")
        yield workload


def _checked(place: str, key: str, value: Any) -> Any:
    """The value as the field takes it."""
    given: Any = value
    if key == "window" and isinstance(value, list):
        given = [None if side == OPEN else side for side in value]
    choices = _choices(_hints()[key])
    if choices and isinstance(value, str) and value not in choices:
        raise UsageError(f"{place}: {UsageError.unknown(f'value of {key}', value, choices)}")
    try:
        return msgspec.convert(given, _hints()[key])
    except msgspec.ValidationError as error:
        raise UsageError(f"{place}: {key} = {_toml(value)}: {str(error).replace('`', '')}") from error


def inconsistency(workload: Workload) -> str | None:
    """Why the fields of a workload cannot stand together, or None."""
    s = workload.sizes
    too_large = [f"{letter} = {size:,}" for letter, size in s.items() if size > LARGEST]
    if too_large:
        return f"no machine holds sizes of more than {LARGEST:,}: {', '.join(too_large)}"
    if s["H"] % s["G"]:
        return f"heads = {s['H']} is not a multiple of kv_heads = {s['G']}"
    if workload.key_lengths is not None and len(workload.key_lengths) != s["B"]:
        return f"key_lengths has {len(workload.key_lengths)} entries for batch = {s['B']}"
    if workload.key_lengths is not None and max(workload.key_lengths) > s["K"]:
        return f"key_lengths has {max(workload.key_lengths)}, and there are {s['K']} keys"
    if s["Q"] != s["K"] and (workload.causal or workload.window is not None):
        return (
            f"causal or a window over {s['Q']} queries and {s['K']} keys means two things (aligned at the first or at"
            " the last key), and libraries differ. Decoding one token over all keys is causal = false"
        )
    captured = {
        "B": 1,
        "H": activations.HEADS,
        "G": activations.HEADS,
        "K": s["Q"],
        "D": activations.SIZE,
        "E": activations.SIZE,
    }
    wrong = [f"{letter} = {s[letter]}" for letter, size in captured.items() if s[letter] != size]
    if workload.values == "activations" and wrong:
        return (
            f"activations are one batch entry of {activations.HEADS} heads of {activations.SIZE}, as many keys as queries;"
            f" here {', '.join(wrong)}"
        )
    return None


def _distinct(workloads: Iterable[Workload], place: str) -> None:
    names: set[str] = set()
    for workload in workloads:
        if workload.name in names:
            raise UsageError(f"{place}: two workloads have the name {workload.name!r}")
        names.add(workload.name)


@cache
def _hints() -> dict[str, Any]:
    """The fields that a file may give, with their types."""
    return {key: hint for key, hint in get_type_hints(Workload, include_extras=True).items() if key != "name"}


@cache
def _required() -> list[str]:
    implied = ("name", "source")  # the table's name; the file's, where it gives no better source
    return [
        field.name for field in fields(Workload) if field.default is MISSING and field.name not in implied
    ]


def _is_tuple(key: str) -> bool:
    return any(get_origin(part) is tuple for part in _parts(_hints()[key]))


def _choices(hint: Any) -> tuple[str, ...]:
    return tuple(choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part))


def _parts(hint: Any) -> list[Any]:
    """The members of a union, each without its annotation."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [get_args(member)[0] if get_origin(member) is Annotated else member for member in members]


def _words(names: Iterable[str]) -> str:
    return ", ".join(names)


def _toml(value: Any) -> str:
    """A value as it stands in the file, nearly."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
