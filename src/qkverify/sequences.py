"""Several sequences of different lengths in one call: packed after one another, in a cache, in pages.

Each sequence is an ordinary `Problem` of one batch entry, so that the reference, its bound and what a person reads of a
counterexample are those of attention itself; `Sequences` lays them out as the operation wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qkverify.choices import DIGITS, SEED, Choices, Recipe, strategy
from qkverify.problems import Problem
from qkverify.runs import NUMPY_DTYPES, active
from qkverify.strategies import ARRAYS, TAME

MOST = 4  # sequences of one call
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33)
HEADS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (2, 3), (3, 2))  # G, group
HEAD_SIZES = ((1, 1), (2, 2), (2, 1), (1, 2), (4, 4), (3, 5), (8, 8), (5, 3), (16, 16))  # D, E
FILLS = ("digits", *[name for name in TAME if name != "digits"], "rising", "large")
SHARED: Mapping[str, Any] = {
    "causal": True,
    "scale": 0.5,
    "softcap": 2.0,
}  # options that all sequences have in common
PLACES: Mapping[str, int] = {
    "count": 1, "heads": 1, "head sizes": 1, "fill": 1, "last": 1, "even": 1, "numbers": SEED,
    **{f"use {name}": 1 for name in SHARED},
    **{f"{what} {i}": width for i in range(MOST)
       for what, width in {"keys": 1, "rows": 1, "empty": 1, **dict.fromkeys(ARRAYS, DIGITS)}.items()},
}  # fmt: skip


@dataclass(frozen=True)
class Sequences:
    """The sequences of one call, each a problem with B = 1, and the options that they share."""

    problems: tuple[Problem, ...]
    options: Mapping[str, Any]

    def packed(self, name: str) -> np.ndarray:
        """The rows of all sequences after one another: (T,H,D) for "query" and "upstream", (S,G,.) for "key", "value"."""
        return np.concatenate(
            [np.ascontiguousarray(getattr(p, name)[0].swapaxes(0, 1)) for p in self.problems]
        )

    def starts(self, letter: str) -> np.ndarray:
        """Where each sequence starts, and the end: int32 (n + 1,), of the queries ("Q") or keys ("K")."""
        return np.cumsum([0, *(p.sizes[letter] for p in self.problems)]).astype(np.int32)

    def lengths(self) -> np.ndarray:
        """The keys of each sequence, int32 (n,)."""
        return np.array([p.sizes["K"] for p in self.problems], np.int32)

    def unpacked(self, rows: Any) -> list[Any]:
        """Rows of all sequences, (T,H,.), as one (1,H,Q,.) for each."""
        at = self.starts("Q")
        return [rows[a:b].swapaxes(0, 1)[None] for a, b in pairwise(at)]

    def in_rooms(self, name: str, room: int, filler: Any) -> np.ndarray:
        """The keys or values in a cache with `room` rows an entry, (n,G,room,.); what lies past the length is `filler`."""
        first = getattr(self.problems[0], name)
        cache = np.full((len(self.problems), first.shape[1], room, first.shape[3]), filler, first.dtype)
        for entry, problem in zip(cache, self.problems, strict=True):
            entry[:, : problem.sizes["K"]] = getattr(problem, name)[0]
        return cache

    def in_pages(self, name: str, table: np.ndarray, pages: int, rows: int, filler: Any) -> np.ndarray:
        """The keys or values in pages of `rows` rows, (pages,rows,G,.), where `table` (n,.) puts them."""
        first = getattr(self.problems[0], name)
        pool = np.full((pages, rows, first.shape[1], first.shape[3]), filler, first.dtype)
        for entry, problem in zip(table, self.problems, strict=True):
            for i in range(problem.sizes["K"]):
                pool[entry[i // rows], i % rows] = getattr(problem, name)[0, :, i]
        return pool

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        described = (p.describe().replace("\n", "\n      ") for p in self.problems)
        return "".join(f"\n    sequence {i}: {text}" for i, text in enumerate(described))


def sequences(
    *, queries: str = "any", causal: bool = False, upstream: bool = False, empty: bool = False
) -> st.SearchStrategy[Sequences]:
    """Up to four sequences with the options that the run offers.

    queries  "any", "keys" (as many as keys) or "last" (the same for all, and no more than keys)
    causal   always causal, without the function being asked for it: the operation is
    upstream draw an upstream gradient as well        empty  some sequences have no queries or no keys
    """

    def make(choices: Choices) -> Sequences:
        run = active()
        options = {name: value for name, value in SHARED.items()
                   if choices.one_in(f"use {name}", 2) and not (causal and name == "causal")
                   and (run is None or run.offers(name))}  # fmt: skip
        alignment = run.semantics["causal_alignment"] if run else "bottom-right"
        fixed = {**options, **({"causal": True} if causal else {}), "causal_alignment": alignment}
        dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
        lengths = _draw_lengths(choices, queries, empty)
        arrays = (_draw_arrays(choices, i, *two, dtype, upstream) for i, two in enumerate(lengths))
        return Sequences(tuple(Problem(**each, **fixed) for each in arrays), options)

    return strategy(Recipe(PLACES, make))


def _draw_lengths(choices: Choices, queries: str, empty: bool) -> list[tuple[int, int]]:
    """The queries and the keys of each sequence."""
    count = choices.pick("count", range(1, MOST + 1))
    last = choices.pick("last", LENGTHS) if queries == "last" else 0
    # All of one length but the last: what decides by the others takes them for a plain batch.
    even = choices.one_in("even", 3)
    found: list[tuple[int, int]] = []
    for i in range(count):
        keys = found[0][1] if even and 0 < i < count - 1 else choices.pick(f"keys {i}", LENGTHS)
        rows = keys if queries == "keys" else last or choices.pick(f"rows {i}", LENGTHS)
        keys = max(keys, rows) if queries == "last" else keys
        gone = choices.pick(f"empty {i}", EMPTY) if empty else ""
        if gone:
            rows, keys = (0, keys) if gone == "queries" else (rows, 0) if queries == "any" else (0, 0)
        found.append((rows, keys))
    return found


EMPTY = ("", "", "", "", "", "", "queries", "keys")


def _draw_arrays(
    choices: Choices, i: int, rows: int, keys: int, dtype: Any, upstream: bool
) -> dict[str, Any]:
    """The arrays of one sequence: heads, their sizes and the distribution are those of all."""
    groups, group = choices.pick("heads", HEADS)
    size, value_size = choices.pick("head sizes", HEAD_SIZES)
    fill = choices.pick("fill", FILLS)
    shapes = {"query": (1, groups * group, rows, size), "key": (1, groups, keys, size),
              "value": (1, groups, keys, value_size), "upstream": (1, groups * group, rows, value_size)}  # fmt: skip
    return {name: choices.array(f"{name} {i}", fill, shape).astype(dtype)
            for name, shape in shapes.items() if upstream or name != "upstream"}  # fmt: skip
