"""Several sequences of different lengths in one call: packed after one another, in a cache, in pages.

Each sequence is an ordinary `Problem` of one batch entry, so that the reference, its bound and what a person reads of a
counterexample are those of attention itself; `Sequences` lays them out as the operation wants them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qkverify.problems import Problem
from qkverify.runs import NUMPY_DTYPES, active
from qkverify.strategies import TAME, Draw, Source

SHARED = ("causal", "scale", "softcap")  # options that all sequences of a call have in common
_lengths = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33))
_entries = st.sampled_from((1, 2, 3, 4))
_heads = st.sampled_from(((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (2, 3), (3, 2)))
_head_sizes = st.sampled_from(((1, 1), (2, 2), (2, 1), (1, 2), (4, 4), (3, 5), (8, 8), (5, 3), (16, 16)))
_fills = st.sampled_from(("digits", *[name for name in TAME if name != "digits"], "rising", "large"))
_bits = st.integers(0, 7)


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


@st.composite
def sequences(
    draw: Draw, *, queries: str = "any", causal: bool = False, upstream: bool = False, empty: bool = False
) -> Sequences:
    """Up to four sequences with the options that the run offers.

    queries  "any", "keys" (as many as keys) or "last" (the same for all, and no more than keys)
    causal   always causal, without the function being asked for it: the operation is
    upstream draw an upstream gradient as well        empty  some sequences have no queries or no keys
    """
    run = active()
    dtype = NUMPY_DTYPES[run.dtype if run else "float32"]
    source, count = Source(draw), draw(_entries)
    groups, group = draw(_heads)
    size, value_size = draw(_head_sizes)
    fill = draw(_fills)
    options = _options(draw, SHARED[1:] if causal else SHARED)
    last = draw(_lengths) if queries == "last" else 0
    found: list[Problem] = []
    even = (
        draw(_bits) > 4
    )  # all of one length but the last: what decides by the others takes them for a plain batch
    for i in range(count):
        keys = found[0].sizes["K"] if even and 0 < i < count - 1 else draw(_lengths)
        rows = keys if queries == "keys" else last or draw(_lengths)
        keys = max(keys, rows) if queries == "last" else keys
        if empty and (gone := draw(_bits)) in (6, 7):
            rows, keys = (0, keys) if gone == 6 else (rows, 0) if queries == "any" else (0, 0)
        shapes = {"query": (1, groups * group, rows, size), "key": (1, groups, keys, size),
                  "value": (1, groups, keys, value_size), "upstream": (1, groups * group, rows, value_size)}  # fmt: skip
        if not upstream:
            del shapes["upstream"]
        arrays: dict[str, Any] = {
            name: source.array(fill, shape).astype(dtype) for name, shape in shapes.items()
        }
        fixed: dict[str, Any] = {**options, "causal": True} if causal else options
        found.append(
            Problem(
                **arrays,
                **fixed,
                causal_alignment=run.semantics["causal_alignment"] if run else "bottom-right",
            )
        )
    return Sequences(tuple(found), options)


def _options(draw: Draw, names: Sequence[str]) -> dict[str, Any]:
    run, bits = active(), draw(_bits)
    values = {"causal": True, "scale": 0.5, "softcap": 2.0}
    return {
        name: values[name]
        for i, name in enumerate(names)
        if bits >> i & 1 and (run is None or run.offers(name))
    }
