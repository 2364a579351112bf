"""Which keys a query reads under every convention, as measured on the implementations: with equal scores and values =
identity the output is the weight of each key, so a key that is read has a weight above zero.

Implementations that give the same picture share it; a case that they answer differently has several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qkverify import foreign_text
from qkverify.errors import UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.report.pictures.grid import numbered, rounded
from qkverify.results import Picture
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, prepare

SIZES = (8, 16, 32, 64, 128)  # of a head; at least as many as keys
EMPTY = 2  # the row that is hidden from every key


@dataclass(frozen=True)
class MaskExample:
    """One call: its options, made for a number of queries and keys; `entry` is the batch entry that is drawn.

    `meanings` names the convention by what query number `telling` reads; what it does not name is drawn all the same.
    """

    name: str
    title: str
    options: Callable[[int, int], dict[str, Any]]
    queries: int = 7
    keys: int = 7
    entry: int = 0
    telling: int = 0
    meanings: Mapping[str, str] = field(default_factory=dict)


def _causal(queries: int, keys: int) -> dict[str, Any]:
    return {"causal": True}


def _prefix(queries: int, keys: int) -> dict[str, Any]:
    return {"mask": (np.tri(queries, keys, dtype=bool) | (np.arange(keys) < 3))[None, None]}


def _hidden(queries: int, keys: int) -> dict[str, Any]:
    return {"mask": np.broadcast_to((np.arange(queries) != EMPTY)[:, None], (1, 1, queries, keys)).copy()}


ROWS = {"reads nothing": "zero", "is NaN": "NaN"}  # what a query that sees no key gets
BOTTOM_RIGHT = {
    row: f"bottom-right, rows without a key {what}"
    for row, what in {**ROWS, "reads 0 to 3": "uniform"}.items()
}
CASES = (
    MaskExample("causal-square", "causal, as many queries as keys", _causal),
    MaskExample("causal-wide", "causal, 4 queries and 7 keys", _causal, queries=4,
         meanings={"reads 0": "top-left", "reads 0 to 3": "bottom-right"}),
    MaskExample("causal-tall", "causal, 7 queries and 4 keys", _causal, keys=4, meanings={"reads 0": "top-left", **BOTTOM_RIGHT}),
    MaskExample("window", "window (2, 1)", lambda q, k: {"window": (2, 1)}, telling=3,
                meanings={"reads 1 to 4": "both ends included"}),
    MaskExample("window-wide", "window (1, 1), 4 queries and 7 keys", lambda q, k: {"window": (1, 1)}, queries=4,
         meanings={"reads 0 to 1": "top-left", "reads 2 to 4": "bottom-right"}),
    MaskExample("padding", "key length 4 of 7", lambda q, k: {"key_lengths": np.array([7, 4], np.int32)}, entry=1,
         meanings={"reads 0 to 3": "padding is not read"}),
    MaskExample("prefix", "a mask with a prefix of 3 keys, causal after it", _prefix),
    MaskExample("empty", f"a mask that hides every key from query {EMPTY}", _hidden, telling=EMPTY,
         meanings={row: f"{what} there" for row, what in {**ROWS, "reads 0 to 6": "uniform"}.items()}),
)  # fmt: skip


def measure(cells: Sequence[Cell]) -> Iterator[Picture]:
    """One picture for every case and answer, of each implementation's first cell on each device."""
    chosen: dict[tuple[str, str], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.dtype != "float32"):  # sorted is stable
        if cell.implementation.operation == "attention":
            chosen.setdefault((cell.implementation.name, cell.device), cell)
    runs = {_called(cell): prepare(cell) for cell in cells if cell in chosen.values()}
    for case in CASES:
        yield from answers(case, runs)


def _called(cell: Cell) -> str:
    name = cell.implementation.name
    return name if cell.device == "cpu" else f"{name} on {cell.device}"


def answers(case: MaskExample, runs: dict[str, Run]) -> Iterator[Picture]:
    """The different pictures of one case, 1 for a key that is read, and one that says who refused it."""
    drawn: dict[str, tuple[list[list[float | None]], list[str]]] = {}
    refused = []
    for name, run in runs.items():
        try:
            shares = weights(case, run)
        except Exception as error:  # the laws report it with its problem
            refused.append(f"{name}: {foreign_text.of_error(error).partition(chr(10))[0]}")
            continue
        if shares is not None:
            # Read or not: a weight of 1/3 is another number in half precision.
            values = rounded(np.where(np.isnan(shares), np.nan, shares > 0))
            drawn.setdefault(repr(values), (values, []))[1].append(name)
    for number, (values, names) in enumerate(drawn.values(), start=1):
        yield Picture(
            name=f"mask-{case.name}-{number}", group="masks", kind="visible", title=titled(case, values),
            finding=in_words(values), source="measured with equal scores and values = identity",
            rows=numbered(case.queries), columns=numbered(case.keys), row_axis="query", column_axis="key", values=values,
            made_by=names,
        )  # fmt: skip
    if refused:
        yield Picture(
            name=f"mask-{case.name}-refused",
            group="masks",
            kind="visible",
            title=case.title,
            reason="; ".join(refused),
        )


def titled(case: MaskExample, values: list[list[float | None]]) -> str:
    """The case, and the name of the convention that was found."""
    meaning = case.meanings.get(_reads(values[case.telling]))
    return f"{case.title}: {meaning}" if meaning else case.title


def weights(case: MaskExample, run: Run) -> np.ndarray | None:
    """The weight (Q,K) of every key for every query; None where the implementation does not offer the option."""
    options = case.options(case.queries, case.keys)
    if not run.offers(*options):
        return None
    batch = case.entry + 1
    sizes = {"B": batch, "H": 1, "G": 1, "Q": case.queries, "K": case.keys}
    size = next((n for n in SIZES if run.implementation.accepts({**sizes, "D": n, "E": n}) is None), None)
    if size is None:
        raise UnsupportedCase(f"takes no head of {', '.join(map(str, SIZES))}")
    values = np.broadcast_to(np.eye(case.keys, size), (batch, 1, case.keys, size)).astype(run.numpy_dtype)
    shape = (batch, 1, case.queries, size)
    problem = Problem(
        query=np.zeros(shape, run.numpy_dtype), key=np.zeros_like(values), value=values, **options
    )
    return run.values(problem)[case.entry, 0, :, : case.keys].astype(np.float64)


def in_words(values: list[list[float | None]]) -> str:
    """Which keys each query reads: "0 reads 0; 1 reads 0 to 1"."""
    return "; ".join(f"{query} {_reads(row)}" for query, row in enumerate(values))


def _reads(row: list[float | None]) -> str:
    if None in row:
        return "is NaN"
    keys = [key for key, weight in enumerate(row) if weight]
    if not keys:
        return "reads nothing"
    whole = keys == list(range(keys[0], keys[-1] + 1))
    return (
        f"reads {keys[0]} to {keys[-1]}" if whole and len(keys) > 1 else f"reads {', '.join(map(str, keys))}"
    )
