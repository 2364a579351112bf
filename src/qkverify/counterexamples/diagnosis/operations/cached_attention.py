"""The mistakes of attention with a cache that new tokens are appended to: (B,.,Q,.) to (B,G,M,.), of `lengths` (B,)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import Array, Mistake
from qkverify.counterexamples.diagnosis.operations.decoding import (
    LETTERS,
    LOUD,
    QUIET,
    WITH,
    Dense,
    like_plain,
    like_plain_gradients,
    options_of,
    per_entry,
    told,
)
from qkverify.counterexamples.diagnosis.operations.kind import (
    LEFT,
    Compute,
    Example,
    Gradients,
    Mistakes,
    OperationKind,
    normal,
)
from qkverify.reference.cached_vjp import taken_apart
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

HELD = (  # new tokens, what each entry holds before them, room beside the longest
    (1, (4, 2), 3), (3, (1, 5, 2), 2), (2, (0, 3), 4), (1, (6,), 2), (4, (2, 2), 3), (2, (5, 1, 0, 3), 1), (1, (3, 7, 1), 2),
    (5, (0, 0), 2), (1, (2, 2), 0), (3, (4, 1), 0), (1, (5, 5, 5), 4), (2, (3,), 2), (1, (1, 3), 1),
    (2, (3, 1), 2), (1, (5, 2), 2), (3, (2, 0), 1),
)  # fmt: skip


def _examples(run: Run) -> list[Example]:
    examples = []
    for i, (fresh, held, spare) in enumerate(HELD):
        heads, shared, size, value_size = LETTERS[i % len(LETTERS)]
        batch, room = len(held), max(held) + fresh + spare
        shapes = [
            (heads, fresh, size),
            (shared, fresh, size),
            (shared, fresh, value_size),
            (shared, room, size),
            (shared, room, value_size),
        ]
        arrays = [
            normal(run, 5 * i + j, batch, *n, times=QUIET if i < len(HELD) - 4 else LOUD)
            for j, n in enumerate(shapes)
        ]
        shape, known = (batch, heads, fresh, value_size), {**told(run), "grouped": heads != shared}
        examples.append(Example((*arrays, np.array(held, np.int32)), options_of(run, i), shape, known))
    return examples


@dataclass(frozen=True)
class Step:
    """One call: what the entries hold (B,1,1,1), how many tokens are new, the number (Q,1) of each, the places (M,), heads."""

    held: Array
    fresh: int
    heads: int
    room: int

    @property
    def token(self) -> Array:
        return np.arange(self.fresh)[:, None]

    @property
    def place(self) -> Array:
        return np.arange(self.room)

    @property
    def end(self) -> Array:
        return self.held + self.fresh


Seen = Callable[[Step], Array]
Slot = Callable[[Step], Array]


def _seen(s: Step) -> Array:
    return np.asarray(s.place <= s.held + s.token)


def _held(s: Step) -> Array:
    return s.held


def _first(s: Step) -> Step:
    return Step(np.broadcast_to(s.held[:1], s.held.shape), s.fresh, s.heads, s.room)


def _cached(visible: Seen = _seen, slot: Slot = _held, mistake: Mistake | None = None, *, read: bool = True,
            left: bool = True) -> Compute:  # fmt: skip
    """New tokens written from a slot on, as far as there is room, and the places of the cache that each query sees.

    Without `read` they are written after the cache is read, and without `left` they are not in it afterwards.
    """

    def compute(
        query: Any, key: Any, value: Any, key_cache: Any, value_cache: Any, lengths: Array, **options: Any
    ) -> Any:
        step = Step(per_entry(lengths), query.shape[2], query.shape[1], key_cache.shape[2])
        first, before = np.reshape(slot(step), -1), (key_cache, value_cache)
        after = [_written(cache, new, first) for cache, new in zip(before, (key, value), strict=True)]
        result = Dense(query, *(after if read else before), mask=visible(step), **options).output(mistake)
        return {"result": result, **dict(zip(LEFT, after if left else before, strict=True))}

    return compute


Parts = Mapping[str, Any]


def _pulled(visible: Seen = _seen, change: Callable[[dict[str, Any], dict[str, Any]], Parts] = lambda right, _: right,
            mistake: Mistake | None = None) -> Compute:  # fmt: skip
    """The gradients with the other tokens seen, or changed with a look at those of the cache after the call."""

    def compute(
        query: Any, key: Any, value: Any, key_cache: Any, value_cache: Any, lengths: Array, upstream: Any,
        **options: Any,
    ) -> Any:  # fmt: skip
        fresh, room = query.shape[2], key_cache.shape[2]
        step = Step(per_entry(lengths), fresh, query.shape[1], room)
        held = (_written(cache, new, lengths) for cache, new in ((key_cache, key), (value_cache, value)))
        after = Dense(query, *held, mask=visible(step), upstream=upstream, **options).gradients(mistake)
        alone = [
            {"query": after["query"][b : b + 1],
             **{name: after[name][b : b + 1, :, : n + fresh] for name in ("key", "value")}}
            for b, n in enumerate(lengths)
        ]  # fmt: skip
        return change(
            taken_apart(alone, lengths, room), {f"{name}_cache": after[name] for name in ("key", "value")}
        )

    return compute


def _nothing_for(*names: str) -> Callable[[dict[str, Any], dict[str, Any]], Parts]:
    return lambda right, _: {name: 0.0 * x if name in names else x for name, x in right.items()}


def _written(cache: Bounded, new: Bounded, first: Array) -> Bounded:
    """Inputs are exact, and so is what is copied."""
    filled = np.array(cache.value)
    for b, at in enumerate(first):
        for i in range(new.shape[2]):
            if 0 <= at + i < filled.shape[2]:
                filled[b, :, at + i] = new.value[b, :, i]
    return Bounded(filled, 0.0, cache.precision, cache.unit)


def _by_heads(s: Step) -> Array:
    return np.asarray((s.place <= s.end - s.heads + s.token) & (s.place < s.end))


SEEN: tuple[tuple[str, Seen], ...] = (
    (
        "attention whose new tokens see what the cache held and not each other",
        lambda s: (s.place < s.held) | (0 * s.token > 0),
    ),
    ("attention whose tokens do not see themselves", lambda s: s.place < s.held + s.token),
    ("attention whose tokens see one of the future", lambda s: s.place <= s.held + s.token + 1),
    (
        "attention without causality: every new token sees all new ones",
        lambda s: (s.place < s.end) | (0 * s.token > 0),
    ),
    (
        "attention whose new tokens see nothing of what the cache held",
        lambda s: _seen(s) & (s.place >= s.held),
    ),
)

MISTAKES: Mistakes = (
    ("attention that reads and writes every entry of the cache at the length of the first",
     _cached(lambda s: _seen(_first(s)), lambda s: _first(s).held)),
    ("attention that writes to every entry of the cache at the length of the first", _cached(slot=lambda s: _first(s).held)),
    ("attention that reads every entry of the cache at the length of the first", _cached(lambda s: _seen(_first(s)))),
    ("attention whose new tokens are written one slot too far, past the one that is read", _cached(slot=lambda s: s.held + 1)),
    ("attention whose new tokens are written one slot too early, over the last one held",
     _cached(slot=lambda s: np.maximum(s.held - 1, 0))),
    ("attention whose new tokens are written from the start of the cache", _cached(slot=lambda s: 0 * s.held)),
    ("attention whose new tokens are written at the end of the room", _cached(slot=lambda s: 0 * s.held + s.room - s.fresh)),
    ("attention whose new tokens are written after the cache is read", _cached(read=False)),
    ("attention whose new tokens are never written to the cache, neither before it is read nor after",
     _cached(read=False, left=False)),
    ("attention whose new tokens are not in the cache after the call", _cached(left=False)),
    *((text, _cached(visible)) for text, visible in SEEN),
    ("attention that reads the whole room of the cache", _cached(lambda s: (s.place < s.room) | (0 * s.token + s.held > s.room))),
    ("attention whose queries stand at the beginning of the cache: what it held before is not counted",
     _cached(lambda s: (s.place <= s.token) & (s.place < s.end))),
    ("attention whose queries are placed by the number of heads instead of new tokens", _cached(_by_heads)),
    ("attention without the first token of the cache", _cached(lambda s: _seen(s) & (s.place > 0))),
    *like_plain(lambda m: _cached(mistake=m)),
)  # fmt: skip

CACHES = ("key_cache", "value_cache")
BACKWARD = Gradients(("query", "key", "value", *CACHES), _pulled(), (
    ("zero for the new tokens", _pulled(change=_nothing_for("key", "value"))),
    ("zero for the new tokens, and the places that they are written to get what belongs to them",
     _pulled(change=lambda right, after: {**_nothing_for("key", "value")(right, after), **after})),
    ("those of the cache after the call: places that are written over get what belongs to the new tokens",
     _pulled(change=lambda right, after: {**right, **after})),
    ("zero for what the cache held", _pulled(change=_nothing_for(*CACHES))),
    ("zero for keys, new and held", _pulled(change=_nothing_for("key", "key_cache"))),
    ("zero for values, new and held", _pulled(change=_nothing_for("value", "value_cache"))),
    *((f"those of {text}", _pulled(visible)) for text, visible in SEEN),
    *like_plain_gradients(lambda m: _pulled(mistake=m), empty_rows=False),
))  # fmt: skip

KIND = OperationKind(_examples, _cached(), MISTAKES, (
    ("with one new token", lambda e: e.shape[2] == 1),
    ("with one new token and room for another",
     lambda e: e.shape[2] == 1 and e.arguments[3].shape[2] > e.arguments[5].max() + 1),
    ("with one batch entry", lambda e: e.shape[0] == 1),
    ("with equal lengths", lambda e: len(set(e.arguments[5])) == 1), *WITH,
), BACKWARD, updated=3)  # fmt: skip
