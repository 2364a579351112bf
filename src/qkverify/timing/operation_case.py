"""One call of an operation to time, and the pair of calls that each operation has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from qkverify.strategies.operation_spec import Given, Source
from qkverify.strategies.operations import OPERATION_SPECS

Draw = Callable[[SimpleNamespace, Source], tuple[Given, Given]]


@dataclass(frozen=True)
class OperationCase:
    """One call to time. `sizes` are what `draw` reads; `shown` are those that a person is told."""

    operation: str
    name: str
    sizes: Mapping[str, Any]
    shown: Mapping[str, int]
    draw: Draw


def short_and_long(
    operation: str, short: Mapping[str, Any], long: Mapping[str, Any], draw: Draw | None = None
) -> list[OperationCase]:
    made = draw or OPERATION_SPECS[operation].draw
    return [
        OperationCase(operation, name, {"fill": "normal", "seed": 0, **sizes},
                      {letter: n for letter, n in sizes.items() if type(n) is int}, made)
        for name, sizes in (("short", short), ("long", long))
    ]  # fmt: skip


def at(
    lengths: tuple[int, int], sizes: Mapping[str, Any], letters: str = "L"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sizes at a short and at a long length of what these letters stand for."""
    short, long = ({**sizes, **dict.fromkeys(letters, length)} for length in lengths)
    return short, long
