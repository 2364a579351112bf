"""The mistakes of attention with a cache in pages: pools (N,P,G,.), a table (B,.) of pages, `lengths` (B,) with the queries."""

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
    Compute,
    Example,
    Gradients,
    Mistakes,
    OperationKind,
    normal,
)
from qkverify.reference.paged_vjp import put_back
from qkverify.runs.run import Run

HELD = (  # queries, lengths, rows of a page
    (1, (5, 3), 2), (2, (4, 7, 9), 4), (3, (6, 3), 3), (1, (8,), 4), (2, (2, 11), 2), (4, (4, 5, 8), 16), (1, (3, 6, 9, 1), 3),
    (2, (7,), 3), (1, (1, 2), 1), (3, (12, 12), 4), (2, (10, 5), 2),
    (1, (7, 4), 2), (2, (5, 3), 4), (3, (6, 9), 3),
)  # fmt: skip


SHARED = (1, 4, 9, 10)  # the first page of these is one for all of their entries


def _examples(run: Run) -> list[Example]:
    """Pages in any order, one that nobody has and one more column of the table than is needed; both hold numbers."""
    examples = []
    for i, (fresh, held, rows) in enumerate(HELD):
        heads, shared, size, value_size = LETTERS[i % len(LETTERS)]
        rng, needed = np.random.default_rng(i), [-(-n // rows) for n in held]
        count = sum(needed) + 1
        table, free = (
            rng.integers(0, count, (len(held), max(needed) + 1)).astype(np.int32),
            list(rng.permutation(count)),
        )
        for entry, n in zip(table, needed, strict=True):
            entry[:n] = [free.pop() for _ in range(n)]
        if i in SHARED:
            table[1:, 0] = table[0, 0]
        shapes = (
            (len(held), heads, fresh, size),
            (count, rows, shared, size),
            (count, rows, shared, value_size),
        )
        arrays = [
            normal(run, 3 * i + j, *n, times=QUIET if i < len(HELD) - 4 else LOUD)
            for j, n in enumerate(shapes)
        ]
        shape, known = (len(held), heads, fresh, value_size), {**told(run), "grouped": heads != shared}
        examples.append(Example((*arrays, table, np.array(held, np.int32)), options_of(run, i), shape, known))
    return examples


@dataclass(frozen=True)
class Pages:
    """The table (B,W), the lengths (B,1,1,1), the rows of a page, the queries and how many pages there are."""

    table: Array
    lengths: Array
    rows: int
    queries: int
    count: int

    @property
    def place(self) -> Array:
        """(W P,): the numbers of the gathered tokens."""
        return np.arange(self.table.shape[1] * self.rows)

    @property
    def last(self) -> Array:
        """(B,1,Q,1): the last token that each query sees."""
        return self.lengths - self.queries + np.arange(self.queries)[:, None]

    @property
    def needed(self) -> Array:
        """(B,1,1,1): the pages that an entry has."""
        return -(-self.lengths // self.rows)

    @property
    def owner(self) -> Array:
        """(N,P): the last entry that has each row of the pool; -1 where none has."""
        owners = np.full((self.count, self.rows), -1)
        for b, (entry, n) in enumerate(zip(self.table, self.lengths.reshape(-1), strict=True)):
            at = np.arange(int(n))
            owners[entry[at // self.rows], at % self.rows] = b
        return owners


def _seen(p: Pages) -> Array:
    return np.asarray(p.place <= p.last)


def _table(p: Pages) -> Array:
    return p.table


def _paged(visible: Callable[[Pages], Array] = _seen, table: Callable[[Pages], Array] = _table,
           mistake: Mistake | None = None) -> Compute:  # fmt: skip
    """The pages of another table, or other tokens seen."""

    def compute(query: Any, keys: Any, values: Any, page_table: Array, lengths: Array, **options: Any) -> Any:
        pages = Pages(page_table, per_entry(lengths), keys.shape[1], query.shape[2], keys.shape[0])
        chosen = np.clip(table(pages), 0, pages.count - 1)
        gathered = [_gathered(pool, chosen) for pool in (keys, values)]
        return Dense(query, *gathered, mask=visible(pages), **options).output(mistake)

    return compute


Pull = Callable[[dict[str, Any], Mapping[str, Any], Pages], Mapping[str, Any]]


def _pulled(visible: Callable[[Pages], Array] = _seen, added: bool = True, change: Pull = lambda right, *_: right,
            mistake: Mistake | None = None) -> Compute:  # fmt: skip
    """The gradients with other tokens seen, of pages whose gradients are not added up, or changed with a look at the pools."""

    def compute(
        query: Any, keys: Any, values: Any, page_table: Array, lengths: Array, upstream: Any, **options: Any
    ) -> Any:
        pages = Pages(page_table, per_entry(lengths), keys.shape[1], query.shape[2], keys.shape[0])
        gathered = [_gathered(pool, page_table) for pool in (keys, values)]
        dense = Dense(query, *gathered, mask=visible(pages), upstream=upstream, **options).gradients(mistake)
        alone = [
            {
                "query": dense["query"][b : b + 1],
                **{name: dense[name][b : b + 1, :, :n] for name in ("key", "value")},
            }
            for b, n in enumerate(lengths)
        ]
        right = put_back(alone, page_table, pages.count, pages.rows)
        if not added:
            right |= _of_the_last(alone, pages)
        return change(right, {"key_pages": keys, "value_pages": values}, pages)

    return compute


def _of_the_last(alone: list[dict[str, Any]], pages: Pages) -> dict[str, Any]:
    """Each row of a page with the gradient of the last entry that has it."""
    each = [
        put_back([of_entry], pages.table[b : b + 1], pages.count, pages.rows)
        for b, of_entry in enumerate(alone)
    ]
    latest = {name: 0.0 * each[0][name] for name in ("key_pages", "value_pages")}
    for b, of_entry in enumerate(each):
        has = (pages.owner == b)[..., None, None]
        latest = {name: np.where(has, of_entry[name], x) for name, x in latest.items()}
    return latest


def _left_as_it_was(right: dict[str, Any], pools: Mapping[str, Any], pages: Pages) -> Mapping[str, Any]:
    """Rows that no entry has keep what lies in the pool."""
    nobody = (pages.owner < 0)[..., None, None]
    return {name: np.where(nobody, pools[name], x) if name in pools else x for name, x in right.items()}


def _nothing_for(name: str) -> Pull:
    return lambda right, *_: {other: 0.0 * x if other == name else x for other, x in right.items()}


def _gathered(pool: Any, table: Array) -> Any:
    """(N,P,G,.) -> (B,G,W P,.)"""
    pages = np.take(pool, table, axis=0)
    batch, width, rows, heads, size = pages.shape
    return pages.reshape(batch, width * rows, heads, size).swapaxes(1, 2)


def _sorted(p: Pages) -> Array:
    table = p.table.copy()
    for entry, n in zip(table, p.needed.reshape(-1), strict=True):
        entry[:n].sort()
    return table


def _through(p: Pages) -> Array:
    """Entry after entry, without gaps."""
    needed = p.needed.reshape(-1)
    return np.asarray((np.cumsum(needed) - needed)[:, None] + np.arange(p.table.shape[1]))


def _backwards(p: Pages) -> Array:
    table = p.table.copy()
    for entry, n in zip(table, p.needed.reshape(-1), strict=True):
        entry[:n] = entry[:n][::-1].copy()
    return table


SEEN: tuple[tuple[str, Callable[[Pages], Array]], ...] = (
    ("attention that leaves out the last page of an entry", lambda p: _seen(p) & (p.place < (p.needed - 1) * p.rows)),
    ("attention that leaves out the last page of an entry where it is not full",
     lambda p: _seen(p) & (p.place < p.lengths // p.rows * p.rows)),
    ("attention whose tokens do not see themselves", lambda p: p.place < p.last),
    ("attention whose tokens see one of the future", lambda p: p.place <= p.last + 1),
    ("attention without causality: every query sees the whole entry", lambda p: (p.place < p.lengths) | (0 * p.last > 0)),
    ("attention whose queries stand at the beginning of the entry instead of its end",
     lambda p: p.place <= p.last - p.lengths + p.queries),
)  # fmt: skip

MISTAKES: Mistakes = (
    *((text, _paged(visible)) for text, visible in SEEN),
    ("attention that reads the last page of an entry whole, past the entry's length",
     _paged(lambda p: _seen(p) | ((p.place >= p.lengths) & (p.place < p.needed * p.rows)))),
    ("attention that reads every page of the table, past the entry's length",
     _paged(lambda p: _seen(p) | (p.place >= p.lengths))),
    ("attention that reads the pages in the order of the pool instead of the table", _paged(table=_sorted)),
    ("attention that reads the pages of an entry in reverse", _paged(table=_backwards)),
    ("attention without the table: pages are taken one after the other, entry after entry", _paged(table=_through)),
    ("attention without the table: every entry reads the pages from the first one on",
     _paged(table=lambda p: np.broadcast_to(np.arange(p.table.shape[1]), p.table.shape))),
    ("attention whose entries read the table one page too late", _paged(table=lambda p: np.roll(p.table, -1, axis=1))),
    ("attention with the first page of an entry in the place of all its pages",
     _paged(table=lambda p: np.broadcast_to(p.table[:, :1], p.table.shape))),
    ("attention with the length of the first entry for all",
     _paged(lambda p: p.place <= p.last[:1] + 0 * p.lengths)),
    ("attention whose lengths do not count the queries", _paged(lambda p: p.place <= p.last + p.queries)),
    *like_plain(lambda m: _paged(mistake=m)),
)  # fmt: skip

BACKWARD = Gradients(("query", "key_pages", "value_pages"), _pulled(), (
    ("those of the last entry where several have a page, instead of the sum", _pulled(added=False)),
    ("not cleared: rows that no entry has keep what lies in the pages", _pulled(change=_left_as_it_was)),
    ("zero for the pages of keys", _pulled(change=_nothing_for("key_pages"))),
    ("zero for the pages of values", _pulled(change=_nothing_for("value_pages"))),
    *((f"those of {text}", _pulled(visible)) for text, visible in SEEN),
    *like_plain_gradients(lambda m: _pulled(mistake=m), empty_rows=False),
))  # fmt: skip

KIND = OperationKind(_examples, _paged(), MISTAKES, (
    ("with one query", lambda e: e.shape[2] == 1), ("with one batch entry", lambda e: e.shape[0] == 1),
    ("with equal lengths", lambda e: len(set(e.arguments[4])) == 1), *WITH,
), BACKWARD)  # fmt: skip
