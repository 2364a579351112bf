"""Several sequences of different lengths in one call: packed after one another, in a cache, in pages.

Each sequence is an ordinary `Problem` of one batch entry, so that the reference, its bound and what a person reads of a
counterexample are those of attention itself; `Sequences` lays them out as the operation wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from qkverify.problem.attention_problem import LAYOUTS, Problem
from qkverify.problem.byte_strategies import DIGITS, SEED, Choices, Recipe, strategy
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.runs.run import Run, active
from qkverify.strategies.attention_problems import ARRAYS, STRIDED, TAME, draw_options

MOST = 4  # sequences of one call
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33)
# The queries of a step: one is what servers ask for, and has kernels of its own.
LAST = (*[1] * 6, *LENGTHS[1:])
LONG = (64, 65, 63, 127, 129, 257, 513, 1025)  # one of the sequences: a cache is read in parts of up to 512
PAIRS = 20_000  # (query, key) pairs of a long sequence, all heads
HEADS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (2, 3), (3, 2))  # G, group
HEAD_SIZES = ((1, 1), (2, 2), (2, 1), (1, 2), (4, 4), (3, 5), (8, 8), (5, 3), (16, 16))  # D, E
LARGE_HEADS = ((32, 32), (64, 64), (128, 128))  # for who requires them
FILLS = ("digits", *[name for name in TAME if name != "digits"], "rising", "large")
SHARED = (
    "causal",
    "window",
    "scale",
    "softcap",
    "alibi_slopes",
    "sinks",
)  # options that all sequences can have in common
SCALES = (0.5, 1.0, 2.0, 0.125, 0.0, -1.0, 0.3)

# How the queries and the keys of the sequences are related in length. What takes a pack for a plain batch decides by some of
# the lengths, or by their sum.
PATTERNS = (*[("any", "any")] * 3, ("all", "all"), ("but the last", "but the last"), ("all", "in total"), ("in total", "all"),
            ("in total", "in total"), ("all", "any"), ("any", "all"))  # fmt: skip
STEPS = (1, 2, 3, 8)
EMPTY = ("", "", "", "", "", "", "queries", "keys")
STRETCHED = (*[""] * 5, "K", "K", "Q")
PLACED = (
    *ARRAYS,
    "query_starts",
    "key_starts",
    "key_cache",
    "value_cache",
    "lengths",
    "key_pages",
    "value_pages",
    "page_table",
)
LAID = ("contiguous", *STRIDED, "heads after length")  # as a projection leaves it: of a cache the usual place
PLACES: Mapping[str, int] = {
    "count": 1, "heads": 1, "head sizes": 1, "fill": 1, "last": 1, "pattern": 1, "step": 1, "some empty": 1, "stretched": 1,
    "stretched at": 1, "long": 1, "numbers": SEED, "laid": 1,
    **{f"use {name}": 1 for name in SHARED}, "window": 1, "scale": 1, "softcap": 1, "alibi_slopes": 8, "sinks": 8,
    **{f"layout of {name}": 1 for name in PLACED},
    **{f"{what} {i}": width for i in range(MOST)
       for what, width in {"keys": 1, "rows": 1, "empty": 1, **dict.fromkeys(ARRAYS, DIGITS)}.items()},
}  # fmt: skip


@dataclass(frozen=True)
class Sequences:
    """The sequences of one call, each a problem with B = 1, the options that they share, and where the arrays lie."""

    problems: tuple[Problem, ...]
    options: Mapping[str, Any]
    layouts: Mapping[str, str] = field(default_factory=dict)

    def of(self, problems: Sequence[Problem]) -> Sequences:
        """Other sequences with the same options and layouts."""
        return replace(self, problems=tuple(problems))

    def laid(self, name: str, array: np.ndarray) -> np.ndarray:
        """An argument of the call in its memory layout."""
        return LAYOUTS[self.layouts.get(name, "contiguous")](array)

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
        places = ", ".join(f"{name} {layout}" for name, layout in self.layouts.items())
        return "".join(f"\n    sequence {i}: {text}" for i, text in enumerate(described)) + (
            f"\n    in memory: {places}" if places else ""
        )


def sequences(
    *,
    queries: str = "any",
    causal: bool = False,
    upstream: bool = False,
    empty: bool = False,
    alike: bool = False,
) -> st.SearchStrategy[Sequences]:
    """Up to four sequences with the options that the run offers.

    queries  "any", "keys" (as many as keys) or "last" (the same for all, and no more than keys)
    causal   always causal, without the function being asked for it: the operation is
    upstream draw an upstream gradient as well        empty  some sequences have no queries or no keys
    alike    all are of one length
    """
    shared = [name for name in SHARED if name != "causal"] if causal else SHARED

    def make(choices: Choices) -> Sequences:
        run = active()
        heads = _accepted(run, HEADS, lambda groups, group: {"G": groups, "H": groups * group})
        usual, large = (
            _accepted(run, pool, lambda d, e: {"D": d, "E": e}) for pool in (HEAD_SIZES, LARGE_HEADS)
        )
        assume(heads and (usual or large))
        groups, group = choices.pick("heads", heads)
        size, value_size = choices.pick("head sizes", usual or large)
        dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
        options = draw_options(choices, run, {"H": groups * group}, dtype, only=shared)
        if "scale" in options:
            options["scale"] = choices.pick("scale", SCALES)
        held = run.semantics if run else {}
        fixed = {**options, "empty_rows": held.get("empty_rows", "zero"),
                 "causal_alignment": "bottom-right" if causal else held.get("causal_alignment", "bottom-right"),
                 **({"causal": True} if causal else {})}  # fmt: skip
        lengths = _draw_lengths(choices, queries, empty=empty, alike=alike, heads=groups * group)
        sizes = {"G": groups, "H": groups * group, "D": size, "E": value_size}
        for rows, keys in lengths:
            assume(run is None or run.implementation.accepts({**sizes, "B": 1, "Q": rows, "K": keys}) is None)
        arrays = (_draw_arrays(choices, i, sizes, *two, dtype, upstream) for i, two in enumerate(lengths))
        return Sequences(tuple(Problem(**each, **fixed) for each in arrays), options, _draw_layouts(choices))

    return strategy(Recipe(PLACES, make))


def _accepted(
    run: Run | None, pool: Sequence[tuple[int, int]], sizes: Callable[[int, int], Mapping[str, int]]
) -> Sequence[tuple[int, int]]:
    """Those of a pool that the implementation requires; `sizes` names what a pair of it is."""
    if run is None or not run.implementation.requires:
        return pool
    return [pair for pair in pool if run.implementation.accepts(sizes(*pair)) is None]


def _draw_layouts(choices: Choices) -> dict[str, str]:
    """The memory layout of each argument that is not contiguous: none in half of the examples."""
    if not choices.one_in("laid", 2):
        return {}
    drawn = {name: choices.pick(f"layout of {name}", LAID) for name in PLACED}
    return {name: layout for name, layout in drawn.items() if layout != "contiguous"}


def _draw_lengths(
    choices: Choices, queries: str, *, empty: bool, alike: bool, heads: int
) -> list[tuple[int, int]]:
    """The queries and the keys of each sequence."""
    count = choices.pick("count", range(1, MOST + 1))
    of_rows, of_keys = ("all", "all") if alike else choices.pick("pattern", PATTERNS)
    keys = _related(choices, "keys", count, of_keys)
    rows = _related(choices, "rows", count, of_rows) if queries == "any" else list(keys)
    last = choices.pick("last", LAST)
    stretched, at = choices.pick("stretched", STRETCHED), choices.pick("stretched at", range(count))
    if stretched and queries == "keys":
        long = choices.pick("long", [n for n in LONG if n * n * heads <= 3 * PAIRS])
        keys = [long] * count if alike else [*keys[:at], long, *keys[at + 1 :]]
    elif stretched:
        long = choices.pick("long", LONG)
        few = max(PAIRS // (long * heads), 1)
        longer, shorter = (rows, keys) if stretched == "Q" and queries == "any" else (keys, rows)
        longer[at], shorter[at], last = long, min(shorter[at], few), min(last, few)
    if queries != "any":
        rows = [last] * count if queries == "last" else keys
        keys = [max(k, q) for k, q in zip(keys, rows, strict=True)]
    lengths = list(zip(rows, keys, strict=True))
    if not empty or not choices.one_in("some empty", 2):
        return lengths
    gone = [choices.pick(f"empty {i}", EMPTY) for i in range(count)]
    if queries == "any":
        return [(0 if what == "queries" else q, 0 if what == "keys" else k)
                for (q, k), what in zip(lengths, gone, strict=True)]  # fmt: skip
    return [(0, k if what == "queries" else 0) if what else (q, k)
            for (q, k), what in zip(lengths, gone, strict=True)]  # fmt: skip


def _related(choices: Choices, what: str, count: int, pattern: str) -> list[int]:
    """Lengths drawn one by one, or all as the first; all but the last; as many in total as if all were."""
    drawn = [choices.pick(f"{what} {i}", LENGTHS) for i in range(count)]
    first = drawn[0]
    if pattern == "any":
        return drawn
    lengths = [first] * count
    if pattern == "but the last":
        lengths[-1] = drawn[-1]
    if pattern == "in total":
        step = min(choices.pick("step", STEPS), first - 1)
        for i in range(1, count - 1, 2):
            lengths[i : i + 2] = first + step, first - step
    return lengths


def _draw_arrays(
    choices: Choices, i: int, sizes: Mapping[str, int], rows: int, keys: int, dtype: Any, upstream: bool
) -> dict[str, Any]:
    """The arrays of one sequence: heads, their sizes and the distribution are those of all."""
    groups, heads, size, value_size = (sizes[letter] for letter in "GHDE")
    fill = choices.pick("fill", FILLS)
    shapes = {"query": (1, heads, rows, size), "key": (1, groups, keys, size),
              "value": (1, groups, keys, value_size), "upstream": (1, heads, rows, value_size)}  # fmt: skip
    return {name: choices.array(f"{name} {i}", fill, shape).astype(dtype)
            for name, shape in shapes.items() if upstream or name != "upstream"}  # fmt: skip
