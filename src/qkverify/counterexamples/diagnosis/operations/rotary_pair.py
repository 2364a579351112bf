"""The mistakes of a rotary embedding of query and key in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import (
    BASE,
    IN_HALVES,
    Array,
    Example,
    Gradients,
    Mistakes,
    OperationKind,
    normal,
    other_layout,
)
from qkverify.counterexamples.diagnosis.operations.rotary import TURNS, Turn, turned, unturned
from qkverify.reference.attention import stored
from qkverify.reference.positions import angles, joined
from qkverify.runs.run import Run


def _examples(run: Run) -> list[Example]:
    """query (B,H,L,D), key (B,G,L,D), positions (B,L)."""
    sizes = [
        (2, 2, 2, 5, 4),
        (2, 4, 2, 3, 6),
        (3, 3, 3, 1, 8),
        (1, 2, 1, 4, 2),
        (2, 3, 3, 4, 6),
        (3, 1, 1, 2, 4),
        (1, 2, 2, 6, 4),
    ]
    examples = []
    for i, (batch, heads, shared, length, size) in enumerate(sizes):
        letters = {"B": batch, "H": heads, "G": shared, "Q": length, "K": length, "D": size}
        if run.implementation.accepts(letters) is not None:
            continue
        query, key = (normal(run, 2 * i + j, batch, n, length, size) for j, n in enumerate((heads, shared)))
        at = np.random.default_rng(i).integers(0, 9 if i % 2 else 9999, (batch, length))
        shapes = {"query": query.shape, "key": key.shape}
        examples += [
            Example((query, key, at), {"layout": layout}, shapes, told=BASE)
            for layout in ("interleaved", "half")
        ]
    return examples


def _both(query: Turn, key: Turn, change: Callable[[Array], Array] = lambda at: at) -> Callable[..., Any]:
    """Query and key, each turned its own way, by positions that broadcast over the heads."""

    def compute(q: Any, k: Any, at: Array, **options: Any) -> dict[str, Any]:
        places = change(at)[:, None]
        return {"query": query(q, places, **options), "key": key(k, places, **options)}

    return compute


def _backwards(x: Any, at: Array, **options: Any) -> Any:
    return turned(x, -at, **options)


def _in_other_pairs(x: Any, at: Array, *, base: Any, layout: str = "interleaved") -> Any:
    return _backwards(x, at, base=base, layout=other_layout(layout, "half"))


def _halves_swapped(q: Any, k: Any, at: Array, *, base: Any, layout: str = "interleaved") -> dict[str, Any]:
    """The second members of the query's pairs are those of the key, and the first ones of the key those of the query."""
    angle = angles(at[:, None].astype(np.float64), q.shape[-1], base)
    half = q.shape[-1] // 2
    cut = (
        (slice(0, None, 2), slice(1, None, 2))
        if layout == "interleaved"
        else (slice(half), slice(half, None))
    )
    (q_0, q_1), (k_0, k_1) = ([x[..., c] for c in cut] for x in (q, k))
    first = q_0 * np.cos(angle) - q_1 * np.sin(angle)
    second = k_0 * np.sin(angle) + k_1 * np.cos(angle)
    return {"query": stored(joined(first, second, layout)), "key": stored(joined(first, second, layout))}


MISTAKES: Mistakes = (
    *((text.replace("its argument, not rotated", "its arguments, not rotated"), _both(turn, turn)) for text, turn in TURNS),
    ("a rotation whose query has the second members of the pairs from the key, and whose key the first ones from the query",
     _halves_swapped),
    ("a rotation by the positions of the first batch entry, for all",
     _both(turned, turned, lambda at: np.broadcast_to(at[:1], at.shape))),
    ("a rotation that counts positions from 0 in every sequence, whatever they are",
     _both(turned, turned, lambda at: np.broadcast_to(np.arange(at.shape[1]), at.shape))),
    ("a rotation of the query, with the key left as it is", _both(turned, unturned)),
    ("a rotation of the key, with the query left as it is", _both(unturned, turned)),
    ("a rotation of the key in the other direction", _both(turned, _backwards)),
    ("a rotation of the query in the other direction", _both(_backwards, turned)),
)  # fmt: skip

Pull = Callable[..., Any]  # an upstream gradient, positions, base and layout -> the gradient


def _pulled(query: Pull, key: Pull, change: Callable[[Array], Array] = lambda at: at) -> Callable[..., Any]:
    """The gradients of query and key, each turned back (`_backwards`) or in another way."""

    def compute(q: Any, k: Any, at: Array, of_query: Any, of_key: Any, **options: Any) -> dict[str, Any]:
        places = change(at)[:, None]
        return {"query": query(of_query, places, **options), "key": key(of_key, places, **options)}

    return compute


def _nothing(upstream: Any, at: Array, **_: Any) -> Any:
    return 0.0 * upstream


def _of_first(at: Array) -> Array:
    return np.broadcast_to(at[:1], at.shape)


ONE: tuple[tuple[str, Pull], ...] = (
    ("turned forward instead of back", turned), ("not turned back", unturned), ("zero", _nothing),
    ("turned back by the positions of the first batch entry", lambda g, at, **o: _backwards(g, _of_first(at), **o)),
)  # fmt: skip
BACKWARD = Gradients(("query", "key"), _pulled(_backwards, _backwards), (
    ("turned forward instead of back", _pulled(turned, turned)),
    ("not turned back", _pulled(unturned, unturned)),
    ("turned back by the positions of the first batch entry, for all", _pulled(_backwards, _backwards, _of_first)),
    ("turned back in pairs of the other layout, neighbours or halves", _pulled(_in_other_pairs, _in_other_pairs)),
    *((f"right for the query and {text} for the key", _pulled(_backwards, pull)) for text, pull in ONE),
    *((f"right for the key and {text} for the query", _pulled(pull, _backwards)) for text, pull in ONE),
))  # fmt: skip

KIND = OperationKind(_examples, _both(turned, turned), MISTAKES, (
    ("with one position", lambda e: e.arguments[2].shape[1] == 1),
    ("with one batch entry", lambda e: len(e.arguments[2]) == 1),
    ("with grouped heads", lambda e: e.shape["query"][1] != e.shape["key"][1]), IN_HALVES,
), BACKWARD)  # fmt: skip
