"""Keys hidden by where they stand: causality and windows that are cut at another place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import (
    MASKING,
    NO_MASK,
    TILES,
    Array,
    Edit,
    Mistake,
    but,
    columns,
    ends,
    other_alignment,
    rows,
    seen,
    sees,
)
from qkverify.problem.attention_problem import Problem


def _places(p: Problem) -> Array:
    """(Q,1): the key that stands at the place of each query."""
    start = 0 if p.causal_alignment == "top-left" else p.sizes["K"] - p.sizes["Q"]
    return rows(p) + start


def _causal(limit: Callable[[Problem], Array]) -> Edit:
    """Causality with another last key for each row."""
    return sees(lambda p: seen(p, causal=False) & (columns(p) <= limit(p)))


def _end_of_tile(tile: int) -> Callable[[Problem], Array]:
    return lambda p: _places(p) // tile * tile + tile - 1


def _from_ends(p: Problem) -> Array:
    """(B,1,Q,1): the place of each query, counted from the end of its own sequence of keys."""
    return np.asarray(rows(p) + ends(p) - p.sizes["Q"])


def _window(change: Callable[[Any, Any], tuple[Any, Any]]) -> Edit:
    return lambda a, p: {**a, "window": change(*p.window)}  # type: ignore[misc]


def _more(side: Any, by: int) -> Any:
    return None if side is None else side + by


def _within_window(places: Array, p: Problem) -> Array:
    left, right = (np.inf if side is None else side for side in p.window or (None, None))
    return (columns(p) >= places - left) & (columns(p) <= places + right)


CAUSALITY: tuple[Mistake, ...] = (
    Mistake("attention with causal aligned {other}; {declared} is declared",
            lambda a, p: {**a, "causal_alignment": other_alignment(p)}, among=("causal", "window", "alibi_slopes")),
    Mistake("attention with causal aligned {other}; {declared} is declared",
            sees(lambda p: seen(p, causal=False) & seen(p, mask=None, window=None, key_lengths=None,
                                                          causal_alignment=other_alignment(p))), needs=("causal",)),
    Mistake("attention without causality", but(causal=False), needs=("causal",)),
    Mistake("attention whose queries do not see their own position", _causal(lambda p: _places(p) - 1), needs=("causal",)),
    Mistake("attention whose queries see one key of the future", _causal(lambda p: _places(p) + 1), needs=("causal",)),
    Mistake("attention that sees the future and not the past",
            sees(lambda p: seen(p, causal=False) & (columns(p) >= _places(p))), needs=("causal",)),
    Mistake("causal attention whose row numbers are divided by the heads of a group",
            _causal(lambda p: rows(p) // p.group + _places(p)[0]), needs=("causal",)),
    Mistake("causal attention that counts from the end of each sequence instead of the end of the keys",
            _causal(_from_ends), needs=("causal", "key_lengths")),
    *(Mistake(f"causal attention that hides whole tiles of {t} keys only: a query sees all of its own tile",
              _causal(_end_of_tile(t)), needs=("causal",)) for t in TILES),
)  # fmt: skip


WINDOWS: tuple[Mistake, ...] = (
    Mistake("attention without the window", but(window=None), needs=("window",)),
    Mistake("attention without the window's left side", _window(lambda left, right: (None, right)), needs=("window",)),
    Mistake("attention without the window's left side, unless that is 0",
            _window(lambda left, right: (left if left == 0 else None, right)), needs=("window",)),
    Mistake("attention without the window's right side", _window(lambda left, right: (left, None)), needs=("window",)),
    Mistake("attention without the window's right side, unless that is 0",
            _window(lambda left, right: (left, right if right == 0 else None)), needs=("window",)),
    Mistake("attention whose window is one key short on the left", _window(lambda left, right: (_more(left, -1), right)),
            needs=("window",)),
    Mistake("attention whose window is one key too long on the left", _window(lambda left, right: (_more(left, 1), right)),
            needs=("window",)),
    Mistake("attention whose window is one key short on the right", _window(lambda left, right: (left, _more(right, -1))),
            needs=("window",)),
    Mistake("attention whose window is one key too long on the right", _window(lambda left, right: (left, _more(right, 1))),
            needs=("window",)),
    Mistake("attention whose window excludes both of its edges",
            _window(lambda left, right: (_more(left, -1), _more(right, -1))), needs=("window",)),
    Mistake("attention with the sides of the window exchanged", _window(lambda left, right: (right, left)), needs=("window",)),
    Mistake("attention whose window is aligned {other}; {declared} is declared",
            sees(lambda p: seen(p, window=None) & seen(p, causal=False, mask=None, key_lengths=None,
                                                          causal_alignment=other_alignment(p))), needs=("window",)),
    Mistake("attention whose window counts from the end of each sequence instead of the end of the keys",
            sees(lambda p: seen(p, window=None) & _within_window(_from_ends(p), p)), needs=("window", "key_lengths")),
    Mistake("attention that sees every key", but(**NO_MASK), among=MASKING),
)  # fmt: skip
