"""The mistakes of attention over packed sequences: rows (T,H,D), (S,G,D), (S,G,E), where each begins, and the end."""

from __future__ import annotations

from collections.abc import Callable
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
    told,
)
from qkverify.counterexamples.diagnosis.operations.kind import (
    Compute,
    Example,
    Gradients,
    Mistakes,
    OperationKind,
    normal,
    with_option,
)
from qkverify.runs.run import Run

LENGTHS = (  # queries and keys of each sequence
    ((3, 5), (2, 4), (4, 1)), ((2, 2), (3, 3), (5, 5)), ((1, 4), (2, 4), (3, 2)), ((4, 6),), ((2, 7), (2, 7), (3, 3), (1, 2)),
    ((5, 3), (1, 6)), ((3, 3), (3, 3), (3, 1)), ((1, 8), (4, 8)), ((6, 6), (1, 1), (2, 2)), ((2, 5), (3, 5), (1, 9)),
    ((2, 3), (3, 3), (1, 7)), ((2, 4), (1, 9)), ((3, 2), (1, 2), (2, 6)), ((2, 5), (4, 4)), ((3, 6),), ((3, 2), (1, 4), (2, 3)),
)  # fmt: skip


def _examples(run: Run) -> list[Example]:
    examples = []
    for i, lengths in enumerate(LENGTHS):
        heads, shared, size, value_size = LETTERS[i % len(LETTERS)]
        starts = [np.cumsum([0, *(n[j] for n in lengths)]).astype(np.int32) for j in (0, 1)]
        rows, keys = (int(s[-1]) for s in starts)
        arrays = [normal(run, 3 * i + j, *n, times=QUIET if i < len(LENGTHS) - 4 else LOUD) for j, n in
                  enumerate(((rows, heads, size), (keys, shared, size), (keys, shared, value_size)))]  # fmt: skip
        call_only = {"longest_query": max(n[0] for n in lengths), "longest_key": max(n[1] for n in lengths)}
        known = {**told(run), "grouped": heads != shared}
        for causal in (False, True) if run.offers_parameter("causal") else (False,):
            options = {**options_of(run, i), **({"causal": True} if causal else {})}
            examples.append(Example((*arrays, *starts), options, (rows, heads, value_size), known, call_only))
    return examples


@dataclass(frozen=True)
class Pack:
    """Where the sequences begin and end, and whether they are causal."""

    queries: Array
    keys: Array
    causal: bool
    alignment: str

    @property
    def block(self) -> Array:
        """bool (T,S): a query and a key of one sequence."""
        return np.asarray(_number(self.queries)[:, None] == _number(self.keys))

    @property
    def past(self) -> Array:
        """bool (T,S): the key does not come after the query, where they are of one sequence."""
        q, k, of = np.diff(self.queries), np.diff(self.keys), _number(self.queries)
        start = (k - q)[of] if self.alignment == "bottom-right" else 0 * of
        row = np.arange(len(of)) - self.queries[of] + start
        return np.asarray(np.arange(self.keys[-1]) - self.keys[of][:, None] <= row[:, None])

    @property
    def seen(self) -> Array:
        return self.block & self.past if self.causal else self.block

    def seen_of(self, keys: int) -> Array:
        """As `seen`, of so many keys: those past the last boundary are nobody's."""
        mask = np.zeros((self.queries[-1], keys), bool)
        mask[:, : self.keys[-1]] = self.seen
        return mask

    def keys_within(self, first: int, last: int) -> Array:
        """bool (T,S): the keys of the query's sequence, so many more at its beginning and at its end."""
        of, at = _number(self.queries), np.arange(self.keys[-1])
        inside = (at >= self.keys[of][:, None] - first) & (at < self.keys[of + 1][:, None] + last)
        return np.asarray(inside & self.past if self.causal else inside)

    def but(self, **changes: Any) -> Pack:
        return Pack(**{**vars(self), **changes})


def _number(starts: Array) -> Array:
    """The sequence that each row belongs to."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


Seen = Callable[[Pack], Array]
EVER = 10**6


def _dense(query: Any, key: Any, value: Any, query_starts: Array, key_starts: Array, *upstream: Any, visible: Seen,
           causal: bool = False, causal_alignment: str = "bottom-right", **options: Any) -> Dense:  # fmt: skip
    rows = [x.swapaxes(0, 1)[None] for x in (query, key, value, *upstream)]
    mask = visible(Pack(query_starts, key_starts, causal, causal_alignment))
    return Dense(*rows[:3], mask=mask, upstream=rows[3] if upstream else None, **options)


def _packed(visible: Seen = lambda p: p.seen, mistake: Mistake | None = None) -> Compute:
    return lambda *a, **o: _dense(*a, visible=visible, **o).output(mistake)[0].swapaxes(0, 1)


def _pulled(visible: Seen = lambda p: p.seen, mistake: Mistake | None = None) -> Compute:
    return lambda *a, **o: {
        n: x[0].swapaxes(0, 1) for n, x in _dense(*a, visible=visible, **o).gradients(mistake).items()
    }


def _last_taken_as_full(p: Pack) -> Array:
    lengths = np.diff(p.keys)
    if len(lengths) > 1 and (lengths[:-1] == lengths[0]).all():
        return p.but(keys=np.minimum(np.arange(len(lengths) + 1) * lengths[0], p.keys[-1])).seen_of(
            p.keys[-1]
        )
    return p.seen


def _as_the_first(p: Pack) -> Array:
    lengths = np.diff(p.keys)
    return p.but(keys=np.minimum(np.arange(len(lengths) + 1) * lengths[0], p.keys[-1])).seen_of(p.keys[-1])


def _by_queries(p: Pack) -> Array:
    return p.but(keys=np.minimum(p.queries, p.keys[-1])).seen_of(p.keys[-1])


def _other(alignment: str) -> str:
    return "top-left" if alignment == "bottom-right" else "bottom-right"


SEEN: tuple[tuple[str, Seen], ...] = (
    ("packed attention that takes the last sequence for as long as the others, where these are of one length",
     _last_taken_as_full),
    ("packed attention that takes all sequences of keys for as long as the first", _as_the_first),
    ("packed attention that takes the boundaries of the queries for those of the keys", _by_queries),
    ("packed attention without boundaries: every sequence sees the keys of all",
     lambda p: p.keys_within(EVER, EVER)),
    ("packed attention whose sequences see the keys of those before them, too", lambda p: p.keys_within(EVER, 0)),
    ("packed attention whose sequences see the keys of those after them, too", lambda p: p.keys_within(0, EVER)),
    ("packed attention whose sequences see the first key of the next one, too", lambda p: p.keys_within(0, 1)),
    ("packed attention whose sequences see the last key of the one before, too", lambda p: p.keys_within(1, 0)),
    ("packed attention whose sequences do not see their last key", lambda p: p.keys_within(0, -1)),
    ("packed attention whose sequences do not see their first key", lambda p: p.keys_within(-1, 0)),
    ("packed attention whose sequences begin and end one key too early", lambda p: p.keys_within(1, -1)),
    ("packed attention whose sequences begin and end one key too late", lambda p: p.keys_within(-1, 1)),
    ("packed attention that leaves out the last sequence",
     lambda p: p.seen & (_number(p.queries) < len(p.queries) - 2)[:, None]),
    ("packed attention without causality", lambda p: p.block),
    ("packed attention with causality although none was asked for", lambda p: p.but(causal=True).seen),
    ("packed attention with causality aligned at the other end of each sequence",
     lambda p: p.but(alignment=_other(p.alignment)).seen),
    ("packed attention whose causality counts rows through the whole pack",
     lambda p: p.block & (np.tri(p.queries[-1], p.keys[-1], dtype=bool) | (not p.causal))),
    ("packed attention whose queries do not see their own position", lambda p: _shifted(p, -1)),
    ("packed attention whose queries see one key of the future", lambda p: _shifted(p, 1)),
)  # fmt: skip


def _shifted(p: Pack, by: int) -> Array:
    """Causality with another last key."""
    if not p.causal:
        return p.seen
    moved = np.zeros_like(p.past)
    moved[:, max(by, 0) :] = p.past[:, : p.past.shape[1] - max(by, 0)]
    if by > 0:
        moved[:, :by] = True
    else:
        moved[:, :by] = p.past[:, -by:]
    return np.asarray(p.block & moved)


MISTAKES: Mistakes = (
    *((text, _packed(visible)) for text, visible in SEEN),
    *like_plain(lambda m: _packed(mistake=m)),
)  # fmt: skip

BACKWARD = Gradients(("query", "key", "value"), _pulled(), (
    *((f"those of {text}", _pulled(visible)) for text, visible in SEEN),
    *like_plain_gradients(lambda m: _pulled(mistake=m)),
))  # fmt: skip

KIND = OperationKind(_examples, _packed(), MISTAKES, (
    ("with causality", with_option("causal")), ("with one sequence", lambda e: len(e.arguments[3]) == 2),
    ("with as many queries as keys in each sequence", lambda e: np.array_equal(e.arguments[3], e.arguments[4])),
    ("with sequences of one length but for the last", lambda e: len(set(np.diff(e.arguments[4])[:-1])) == 1), *WITH,
), BACKWARD)  # fmt: skip
