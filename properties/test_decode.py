"""Attention as servers call it: sequences packed after one another, a cache that grows, a cache in pages.

packed_attention(query, key, value, query_starts, key_starts)      rows of all sequences: (T,H,D), (S,G,D), (S,G,E)
cached_attention(query, key, value, key_cache, value_cache, lengths)   new tokens (B,.,Q,.) are appended to (B,G,M,.)
paged_attention(query, key_pages, value_pages, page_table, lengths)    pages (N,P,G,.), queries are the last tokens

Whatever the layout, each sequence is plain attention over its own keys, with the options that all have in common. Arrays may
lie anywhere in memory: a cache is a view of a larger one, a page table a slice of a wider one.
"""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.contract import OPERATIONS
from qkverify.problem.byte_strategies import several
from qkverify.reference.cached_vjp import taken_apart
from qkverify.reference.paged_vjp import put_back
from qkverify.rounding import Bounded
from qkverify.runs.assertions import assert_identical, assert_within_bound
from qkverify.strategies.sequences import sequences
from qkverify.verification.laws import law

PACKED, CACHED, PAGED = "packed_attention", "cached_attention", "paged_attention"
CACHES, POOLS = ("key_cache", "value_cache"), ("key_pages", "value_pages")


def packed(run, given, integers="int32"):
    """The output of every sequence, (1,H,Q,E) each."""
    run.problems += given.problems
    longest = {name: int(max(p.sizes[letter] for p in given.problems))
               for name, letter in (("longest_query", "Q"), ("longest_key", "K")) if run.offers_parameter(name)}  # fmt: skip
    arrays = [given.laid(name, given.packed(name)) for name in ("query", "key", "value")]
    shape = (len(arrays[0]), arrays[0].shape[1], arrays[2].shape[2])
    rows = run.call(*arrays, *starts(given, integers), shape=shape, **given.options, **longest)
    return given.unpacked(rows)


def starts(given, integers="int32"):
    """Where the queries and the keys of each sequence start."""
    return [given.laid(name, as_integers(given.starts(letter), integers))
            for name, letter in (("query_starts", "Q"), ("key_starts", "K"))]  # fmt: skip


def as_integers(array, dtype):
    """The array in another type of integers, where that can hold it."""
    assume(array.size == 0 or array.max() <= np.iinfo(dtype).max)
    return array.astype(dtype)


def assert_each_is_right(run, given, outputs):
    for i, (got, problem) in enumerate(zip(outputs, given.problems, strict=True)):
        assert_within_bound(run.within(got, run.bound(problem)[0]), run.exact(problem), what=f"sequence {i}")


@law("Sequences packed after one another get what each gets alone.", source="cumulative sequence lengths: FlashAttention's varlen form", operation=PACKED,
     given=sequences(empty=True), weight=2.0)  # fmt: skip
def test_packed_equals_alone(run, given):
    assert_each_is_right(run, given, packed(run, given))


@law("The other sequences of a pack have no influence.", source="an offset that belongs to another sequence", operation=PACKED, given=sequences(), which=range(4),
     poison=(30.0, -30.0, 1e4))  # fmt: skip
def test_packed_neighbours_have_no_influence(run, given, which, poison):
    which %= len(given.problems)
    changed = [p if i == which else p.replace(query=np.full_like(p.query, poison), key=np.full_like(p.key, poison), value=np.full_like(p.value, poison))
               for i, p in enumerate(given.problems)]  # fmt: skip
    exact = run.bound(given.problems[which])[0]
    other = packed(run, given.of(changed))[which]
    assert_within_bound(run.within(other, exact), run.within(packed(run, given)[which], exact))


@law("The gradients of a packed sequence are those that it has alone.", source="offsets of packed sequences in the backward kernel", operation=PACKED, needs="gradients",
     given=sequences(upstream=True, empty=True))  # fmt: skip
def test_packed_gradients_equal_alone(run, given):
    inputs = {name: given.laid(name, given.packed(name)) for name in ("query", "key", "value")}
    upstream = given.laid("upstream", given.packed("upstream"))
    found = run.call_gradients(inputs, *starts(given), upstream=upstream, **given.options)
    for letter, names in (("Q", ("query",)), ("K", ("key", "value"))):
        at = given.starts(letter)
        for i, problem in enumerate(given.problems):
            exact = run.gradient_bounds(problem)
            for name in names:
                got = found[name][at[i] : at[i + 1]].swapaxes(0, 1)[None]
                assert_within_bound(
                    run.within(got, exact[name]), exact[name].value, what=f"gradient of {name}, sequence {i}"
                )


INTEGERS = ("int64", "int32", "int16", "uint8")
SIGNED = INTEGERS[:3]  # of starts, whose differences would wrap where there are no negative numbers
REFUSALS = (TypeError, ValueError, RuntimeError)


@law("The type of the integers that say where sequences start does not matter: the result is right, or the type is refused.",
     source="64-bit starts read as 32-bit ones", operation=PACKED, given=sequences(empty=True), integers=SIGNED, weight=0.5)  # fmt: skip
def test_starts_of_any_integer_type(run, given, integers):
    try:
        outputs = packed(run, given, integers)
    except REFUSALS:
        return
    assert_each_is_right(run, given, outputs)


# -- a cache that grows ------------------------------------------------------------------------------------------------


def cached(run, given, first, last, caches):
    """Tokens first .. last of every sequence, appended to caches that hold what comes before: the output (B,H,Q,E)."""
    run.problems += given.problems
    *arguments, shape = step(given, first, last, caches)
    return run.call_updating(*arguments, updated=3, shape=shape, **given.options)


def step(given, first, last, caches):
    """The arguments of a call with tokens first .. last of every sequence, and the shape of its result."""
    lengths = np.full(len(given.problems), first, np.int32)
    return arguments_of(given, [slice(first, last)] * len(lengths), caches, lengths)


def arguments_of(given, fresh, caches, lengths):
    """New tokens, caches and lengths, each in its place in memory, and the shape of the result."""
    new = {name: np.concatenate([getattr(p, name)[:, :, rows] for p, rows in zip(given.problems, fresh, strict=True)])
           for name in ("query", "key", "value")}  # fmt: skip
    laid = [given.laid(name, x) if isinstance(x, np.ndarray) else x
            for name, x in zip(("key_cache", "value_cache"), caches, strict=True)]  # fmt: skip
    shape = (*new["query"].shape[:3], new["value"].shape[3])
    return [*(given.laid(name, x) for name, x in new.items()), *laid, given.laid("lengths", lengths), shape]


def rooms(given, length, room, filler):
    """Caches that hold the first `length` tokens of each sequence."""
    held = given.of([tokens(p, slice(length)) for p in given.problems])
    return [held.in_rooms(name, room, filler) for name in ("key", "value")]


def tokens(problem, rows):
    """A problem of some of the tokens."""
    return problem.replace(**{name: getattr(problem, name)[:, :, rows] for name in ("query", "key", "value")})


def filler_of(run, poison):
    return np.nan if run.semantics["masked_values"] == "ignored" else poison


steps = {
    "operation": CACHED,
    "given": sequences(queries="keys", causal=True, alike=True),
    "spare": (0, 1, 7),
}


@law("Prefill in chunks of any sizes, one token at a time among them, equals attention over all tokens at once.", source="KV-cache decoding", **steps,
     cuts=several((1, 1, 2, 3, 8, 33), most=8))  # fmt: skip
def test_chunked_prefill_equals_full(run, given, spare, cuts):
    length = given.problems[0].sizes["K"]
    caches, at, parts = rooms(given, 0, length + spare, 0.0), 0, []
    for size in [*cuts, length]:
        end = min(at + size, length)
        if end > at:
            output, after = cached(run, given, at, end, caches)
            caches, at = after[:2], end
            parts.append(output)
    together = np.concatenate(parts, axis=2)
    assert_each_is_right(run, given, [together[b : b + 1] for b in range(len(together))])


@law("After a call the cache holds the new tokens in the next free places, and everything else as before.", source="slots written one too far, or never", exact=True, **steps,
     fresh=range(1, 4))  # fmt: skip
def test_cache_takes_exactly_the_new_tokens(run, given, spare, fresh):
    length = given.problems[0].sizes["K"]
    fresh = min(fresh, length)
    before = rooms(given, length - fresh, length + spare, 0.25)
    _, after = cached(run, given, length - fresh, length, [x.copy() for x in before])
    wanted = rooms(given, length, length + spare, 0.25)
    for name, got, expected in zip(("key cache", "value cache"), after, wanted, strict=False):
        assert_identical(got, expected, what=name)


@law("A call writes to the caches only: the new tokens and the lengths stay what they are.", source="the caller's lengths advanced in place", exact=True, **steps,
     fresh=range(1, 4), weight=0.5)  # fmt: skip
def test_only_the_cache_is_written(run, given, spare, fresh):
    length = given.problems[0].sizes["K"]
    fresh = min(fresh, length)
    run.problems += given.problems
    *arguments, shape = step(
        given, length - fresh, length, rooms(given, length - fresh, length + spare, 0.25)
    )
    after = run.left_behind(*arguments, shape=shape, **given.options)
    for name, was, now in zip(OPERATIONS[CACHED], arguments, after, strict=True):
        if name not in ("key_cache", "value_cache"):
            assert_identical(now, was, what=name)


@law("What the caller does to the cache between two calls counts: entries change places, and tokens are taken back.", source="a copy of the cache kept beside it",
     **steps, seed=range(100), taken_back=(0, 0, 1, 3), weight=0.5)  # fmt: skip
def test_cache_is_read_anew(run, given, spare, seed, taken_back):
    """Beam search reorders the entries; speculative decoding replaces the last tokens."""
    length, count = given.problems[0].sizes["K"], len(given.problems)
    first = length // 2
    assume(first and (count > 1 or taken_back))
    order = np.random.default_rng(seed).permutation(count)
    caches = [given.laid(f"{name}_cache", x)
              for name, x in zip(("key", "value"), rooms(given, 0, length + spare, 0.0), strict=True)]  # fmt: skip
    held = [run.held(x) for x in caches]
    kept = max(first - taken_back, 0)
    drafted = given.of(
        [p.replace(key=negated(p.key, kept), value=negated(p.value, kept)) for p in given.problems]
    )
    cached(run, drafted, 0, first, held)
    for cache in caches:
        cache[...] = cache[order]
    moved = given.of([given.problems[b] for b in order])
    output, _ = cached(run, moved, kept, length, held)
    for b, (got, problem) in enumerate(zip(output, moved.problems, strict=True)):
        exact = run.bound(problem)[0][:, :, kept:]
        assert_within_bound(run.within(got[None], exact), exact.value, what=f"sequence {b}")


def negated(array, first):
    """The tokens from `first` on with the other sign."""
    return np.concatenate([array[:, :, :first], -array[:, :, first:]], axis=2)


@law("Every entry of a batch appends at its own length, and sees its own tokens only.", source="one counter for all entries or layers", operation=CACHED,
     given=sequences(queries="last", causal=True), spare=(0, 1, 7), poison=(1e4, -1e4))  # fmt: skip
def test_entries_decode_at_their_own_lengths(run, given, spare, poison):
    assert_each_is_right(run, given, decoded(run, given, spare, poison))


@law("The type of the integers that hold a cache's lengths does not matter: the result is right, or the type is refused.",
     source="64-bit lengths read as 32-bit ones", operation=CACHED, given=sequences(queries="last", causal=True), spare=(0, 1, 7),
     poison=(1e4, -1e4), integers=INTEGERS, weight=0.5)  # fmt: skip
def test_cache_lengths_of_any_integer_type(run, given, spare, poison, integers):
    try:
        outputs = decoded(run, given, spare, poison, integers)
    except REFUSALS:
        return
    assert_each_is_right(run, given, outputs)


def decoded(run, given, spare, poison, integers="int32"):
    """The output of each entry for its last tokens."""
    *arguments, shape = appending(run, given, spare, poison, integers)
    output, _ = run.call_updating(*arguments, updated=3, shape=shape, **given.options)
    return [output[b : b + 1] for b in range(len(output))]


def appending(run, given, spare, poison, integers="int32"):
    """A call that appends the last tokens; the places where they go, and those behind them, hold rubbish."""
    run.problems += given.problems
    fresh = given.problems[0].sizes["Q"]
    kept = as_integers(given.lengths(), integers) - np.dtype(integers).type(fresh)
    room = int(given.lengths().max()) + spare
    caches = []
    for name in ("key", "value"):
        cache = given.in_rooms(name, room, filler_of(run, poison))
        for entry, length in zip(cache, kept.tolist(), strict=True):
            entry[:, length : length + fresh] = filler_of(run, poison)
        caches.append(cache)
    return arguments_of(given, [slice(-fresh, None)] * len(kept), caches, kept)


grown = {"operation": CACHED, "needs": "gradients", "given": sequences(queries="last", causal=True, upstream=True),
         "spare": (0, 1, 7), "poison": (30.0, -30.0, 300.0)}  # fmt: skip


def cached_gradients(run, given, spare, poison, frozen=False):
    """The gradients of a call that appends the last tokens, the exact ones, and which rows of the caches are read.

    Those of what the caches held before belong to it too; `frozen` caches ask for none.
    """
    *arguments, _ = appending(run, given, spare, poison)
    named = dict(zip(OPERATIONS[CACHED], arguments, strict=True))
    inputs = [name for name in named if name in ("query", "key", "value") or (name in CACHES and not frozen)]
    rest = [x for name, x in named.items() if name not in inputs]
    above = np.concatenate([p.upstream for p in given.problems])
    found = run.call_gradients(
        {name: named[name] for name in inputs}, *rest, upstream=above, written=CACHES, **given.options
    )
    kept, room = named["lengths"], named["key_cache"].shape[2]
    exact = taken_apart([run.gradient_bounds(p) for p in given.problems], kept, room)
    return found, exact, np.arange(room)[:, None] < kept[:, None, None, None]


def assert_read_rows_are_right(run, found, exact, read):
    """Every gradient, but for the rows of a cache or of pages that nobody reads: these have a law of their own."""
    for name, got in found.items():
        rows = read if name in (*CACHES, *POOLS) else np.True_
        right, wanted = (np.where(rows, x, 0.0) for x in (run.within(got, exact[name]), exact[name].value))
        assert_within_bound(right, wanted, what=f"gradient of {name}")


def assert_unread_rows_get_nothing(found, names, read):
    for name in names:
        unread = np.where(read, 0.0, found[name].astype(np.float64))
        assert_identical(unread, np.zeros_like(unread), what=f"gradient of {name}")


@law("The gradients of new tokens, and of those that the cache held before, are those that each sequence has alone.",
     source="a cache in which a prefix is learnt: gradients go through what is written in place", **grown, frozen=(False, False, True))  # fmt: skip
def test_cached_gradients_equal_alone(run, given, spare, poison, frozen):
    found, exact, read = cached_gradients(
        run, given, spare, poison, frozen and run.implementation.vjp is None
    )
    assert_read_rows_are_right(run, found, exact, read)


@law("Places of a cache that are written over, and those behind the last token, get zero gradient, exactly, whatever they held.",
     source="what was there before an assignment has no influence", **grown, exact=True)  # fmt: skip
def test_unread_cache_gets_zero_gradient(run, given, spare, poison):
    found, _, read = cached_gradients(run, given, spare, poison)
    assert_unread_rows_get_nothing(found, CACHES, read)


# -- a cache in pages --------------------------------------------------------------------------------------------------

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
    "A cache in pages, wherever they lie, is the cache in one piece; what no sequence holds is never read.",
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
    one, two = (paged(run, given, rows, spare, s, poison) for s in (seed, other))
    for b, bound in enumerate(exact):
        assert_within_bound(run.within(one[b], bound), run.within(two[b], bound), what=f"sequence {b}")


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
    found = run.call_gradients(inputs, table, lengths, upstream=above, **given.options)
    alone = [{name: Bounded(x.value, x.errors, run.gradient_precision) for name, x in run.gradient_bounds(p).items()}
             for p in given.problems]  # fmt: skip
    read = np.zeros(pools[0].shape[:2], bool)
    for entry, n in zip(table, lengths, strict=True):
        read[entry[np.arange(n) // rows], np.arange(n) % rows] = True
    return found, put_back(alone, table, *read.shape), read[..., None, None]


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
    found, _, read = paged_gradients(run, given, rows, spare, seed, poison)
    assert_unread_rows_get_nothing(found, POOLS, read)
