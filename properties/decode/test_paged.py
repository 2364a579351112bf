"""Laws of a cache in pages."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.properties.decode.serving import (
    INTEGERS,
    PAGED,
    POOLS,
    REFUSALS,
    as_integers,
    assert_each_is_right,
    assert_read_rows_are_right,
    assert_unread_rows_get_nothing,
    filler_of,
)
from qkverify.reference.paged_vjp import put_back
from qkverify.rounding import Bounded
from qkverify.runs.assertions import assert_within_bound
from qkverify.strategies.sequences import sequences
from qkverify.verification.laws import law

pages = {"operation": PAGED, "given": sequences(queries="last", causal=True), "rows": (1, 2, 4, 16, 3), "spare": (0, 1, 3),
         "seed": range(100), "poison": (1e4, -1e4)}  # fmt: skip


def paged(run, given, rows, spare, seed, poison, integers="int32"):
    """The output of each sequence."""
    arguments = in_pages(run, given, rows, spare, seed, poison, integers)
    shape = (*arguments[0].shape[:3], given.problems[0].sizes["E"])
    output = run.call(*arguments, shape=shape, **given.options)
    return [output[b : b + 1] for b in range(len(output))]


def in_pages(run, given, rows, spare, seed, poison, integers="int32", common=()):
    """A call with the pages of all sequences mixed by `seed`; unused rows, pages and table entries hold rubbish.

    `common` says how many of its first pages each sequence has in common with the first one.
    """
    run.problems += given.problems
    needed = -(-given.lengths() // rows)
    count, width = int(needed.sum()) + spare, int(needed.max()) + min(spare, 1)
    rng = np.random.default_rng(seed)
    free = list(rng.permutation(count))
    table = as_integers(rng.integers(0, count, (len(needed), width)), integers)
    for entry, n in zip(table, needed, strict=True):
        entry[:n] = [free.pop() for _ in range(n)]
    for entry, n in zip(table, common, strict=False):
        entry[:n] = table[0, :n]
    pools = [given.laid(f"{name}_pages", given.in_pages(name, table, count, rows, filler_of(run, poison)))
             for name in ("key", "value")]  # fmt: skip
    query = given.laid("query", np.concatenate([p.query for p in given.problems]))
    lengths = given.laid("lengths", as_integers(given.lengths(), integers))
    return query, *pools, given.laid("page_table", table), lengths


@law(
    "A cache in pages gives the result of a cache in one piece, wherever the pages lie; pages of no sequence are never read.",
    source="PagedAttention",
    **pages,
)
def test_paged_equals_contiguous(run, given, rows, spare, seed, poison):
    assert_each_is_right(run, given, paged(run, given, rows, spare, seed, poison))


@law("The type of the integers in a page table and its lengths does not matter: the result is right, or the type is refused.",
     source="64-bit page numbers read as 32-bit ones", **pages, integers=INTEGERS, weight=0.5)  # fmt: skip
def test_page_tables_of_any_integer_type(run, given, rows, spare, seed, poison, integers):
    try:
        outputs = paged(run, given, rows, spare, seed, poison, integers)
    except REFUSALS:
        return
    assert_each_is_right(run, given, outputs)


@law("Where the pages lie does not matter.", source="PagedAttention", **pages, other=range(100, 200))
def test_page_order_does_not_matter(run, given, rows, spare, seed, poison, other):
    assume(sum(-(-given.lengths() // rows)) > 1)
    exact = [run.bound(p)[0] for p in given.problems]
    first, second = (paged(run, given, rows, spare, s, poison) for s in (seed, other))
    for b, bound in enumerate(exact):
        assert_within_bound(run.within(first[b], bound), run.within(second[b], bound), what=f"sequence {b}")


learnt = {
    **pages,
    "needs": "gradients",
    "given": sequences(queries="last", causal=True, upstream=True),
    "poison": (30.0, -30.0, 300.0),
}


def paged_gradients(run, given, rows, spare, seed, poison, shared=0):
    """The gradients, the exact ones, and which rows of the pages are read.

    Every sequence begins with the tokens of the first one, as many as fill up to `shared` pages, and has these pages from it.
    """
    first, *others = given.problems
    common = [0, *(min(shared, p.sizes["K"] // rows, first.sizes["K"] // rows) for p in others)]
    given = given.of([beginning_as(p, first, n * rows) for p, n in zip(given.problems, common, strict=True)])
    query, *pools, table, lengths = in_pages(run, given, rows, spare, seed, poison, common=common)
    above = np.concatenate([p.upstream for p in given.problems])
    inputs = {"query": query, **dict(zip(POOLS, pools, strict=True))}
    gradients = run.call_gradients(inputs, table, lengths, upstream=above, **given.options)
    alone = [{name: Bounded(x.value, x.errors, run.gradient_precision) for name, x in run.gradient_bounds(p).items()}
             for p in given.problems]  # fmt: skip
    read = np.zeros(pools[0].shape[:2], bool)
    for entry, n in zip(table, lengths, strict=True):
        read[entry[np.arange(n) // rows], np.arange(n) % rows] = True
    return gradients, put_back(alone, table, *read.shape), read[..., None, None]


def beginning_as(problem, first, count):
    """With the first keys and values of another sequence."""
    return problem.replace(**{name: np.concatenate([getattr(first, name)[:, :, :count], getattr(problem, name)[:, :, count:]], axis=2)
                              for name in ("key", "value")})  # fmt: skip


@law("The gradients of queries and pages are those that each sequence has alone; a page that several have gets the sum.",
     source="pages that are shared by a common beginning: the transpose of a gather adds up", **learnt, shared=(0, 1, 2))  # fmt: skip
def test_paged_gradients_equal_alone(run, given, rows, spare, seed, poison, shared):
    assert_read_rows_are_right(run, *paged_gradients(run, given, rows, spare, seed, poison, shared))


@law("Pages that no sequence has, and rows behind its last token, get zero gradient, exactly, whatever they hold.",
     source="PagedAttention: what no sequence has is never read", **learnt, exact=True)  # fmt: skip
def test_unread_pages_get_zero_gradient(run, given, rows, spare, seed, poison):
    gradients, _, read = paged_gradients(run, given, rows, spare, seed, poison)
    assert_unread_rows_get_nothing(gradients, POOLS, read)
