"""Attention as servers call it: sequences packed after one another, a cache that grows, a cache in pages.

packed_attention(query, key, value, query_starts, key_starts)      rows of all sequences: (T,H,D), (S,G,D), (S,G,E)
cached_attention(query, key, value, key_cache, value_cache, lengths)   new tokens (B,.,Q,.) are appended to (B,G,M,.)
paged_attention(query, key_pages, value_pages, page_table, lengths)    pages (N,P,G,.), queries are the last tokens

Whatever the layout, each sequence is plain attention over its own keys.
"""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.choices import several
from qkverify.laws import law
from qkverify.sequences import sequences
from qkverify.verdict import assert_identical, assert_within_bound

PACKED, CACHED, PAGED = "packed_attention", "cached_attention", "paged_attention"


def packed(run, given):
    """The output of every sequence, (1,H,Q,E) each."""
    run.problems += given.problems
    longest = {name: int(max(p.sizes[letter] for p in given.problems))
               for name, letter in (("longest_query", "Q"), ("longest_key", "K")) if run.offers_parameter(name)}  # fmt: skip
    arrays = [given.packed(name) for name in ("query", "key", "value")]
    shape = (len(arrays[0]), arrays[0].shape[1], arrays[2].shape[2])
    rows = run.call(*arrays, given.starts("Q"), given.starts("K"), shape=shape, **given.options, **longest)
    return given.unpacked(rows)


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
    other = packed(run, type(given)(tuple(changed), given.options))[which]
    assert_within_bound(run.within(other, exact), run.within(packed(run, given)[which], exact))


@law("The gradients of a packed sequence are those that it has alone.", source="offsets of packed sequences in the backward kernel", operation=PACKED, needs="gradients",
     given=sequences(upstream=True))  # fmt: skip
def test_packed_gradients_equal_alone(run, given):
    inputs = {name: given.packed(name) for name in ("query", "key", "value")}
    found = run.call_gradients(inputs, given.starts("Q"), given.starts("K"), upstream=given.packed("upstream"), **given.options)  # fmt: skip
    for letter, names in (("Q", ("query",)), ("K", ("key", "value"))):
        at = given.starts(letter)
        for i, problem in enumerate(given.problems):
            exact = run.gradient_bounds(problem)
            for name in names:
                got = found[name][at[i] : at[i + 1]].swapaxes(0, 1)[None]
                assert_within_bound(
                    run.within(got, exact[name]), exact[name].value, what=f"gradient of {name}, sequence {i}"
                )


# -- a cache that grows ------------------------------------------------------------------------------------------------


def cached(run, given, first, last, caches):
    """Tokens first .. last of every sequence, appended to caches that hold what comes before: the output (B,H,Q,E)."""
    run.problems += given.problems
    query, key, value = (
        np.concatenate([getattr(p, n)[:, :, first:last] for p in given.problems])
        for n in ("query", "key", "value")
    )
    lengths = np.full(len(given.problems), first, np.int32)
    shape = (*query.shape[:3], value.shape[3])
    return run.call_updating(query, key, value, *caches, lengths, updated=3, shape=shape, **given.options)


def rooms(given, length, room, filler):
    """Caches that hold the first `length` tokens of each sequence."""
    kept = [
        p.replace(query=p.query[:, :, :length], key=p.key[:, :, :length], value=p.value[:, :, :length])
        for p in given.problems
    ]
    held = type(given)(tuple(kept), given.options)
    return [held.in_rooms(name, room, filler) for name in ("key", "value")]


def of_one_length(given):
    """The sequences cut to the shortest: a batch that decodes in step."""
    shortest = min(p.sizes["K"] for p in given.problems)
    return type(given)(tuple(p.replace(query=p.query[:, :, :shortest], key=p.key[:, :, :shortest], value=p.value[:, :, :shortest])
                             for p in given.problems), given.options)  # fmt: skip


def filler_of(run, poison):
    return np.nan if run.semantics["masked_values"] == "ignored" else poison


steps = {
    "operation": CACHED,
    "given": sequences(queries="keys", causal=True),
    "spare": (0, 1, 7),
}


@law("Prefill in chunks of any sizes, one token at a time among them, equals attention over all tokens at once.", source="KV-cache decoding", **steps,
     cuts=several((1, 1, 2, 3, 8), most=8))  # fmt: skip
def test_chunked_prefill_equals_full(run, given, spare, cuts):
    given = of_one_length(given)
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
    given = of_one_length(given)
    length = given.problems[0].sizes["K"]
    fresh = min(fresh, length)
    before = rooms(given, length - fresh, length + spare, 0.25)
    _, after = cached(run, given, length - fresh, length, [x.copy() for x in before])
    wanted = rooms(given, length, length + spare, 0.25)
    for name, got, expected in zip(("key cache", "value cache"), after, wanted, strict=False):
        assert_identical(got, expected, what=name)


@law("Every entry of a batch appends at its own length, and sees its own tokens only.", source="one counter for all entries or layers", operation=CACHED,
     given=sequences(queries="last", causal=True), spare=(0, 1, 7), poison=(1e4, -1e4))  # fmt: skip
def test_entries_decode_at_their_own_lengths(run, given, spare, poison):
    fresh = given.problems[0].sizes["Q"]
    kept = given.lengths() - fresh
    room = int(given.lengths().max()) + spare
    caches = []
    for name in ("key", "value"):
        cache = given.in_rooms(name, room, filler_of(run, poison))
        for entry, length in zip(cache, kept, strict=True):
            entry[:, length : length + fresh] = filler_of(run, poison)
        caches.append(cache)
    query, key, value = (
        np.concatenate([getattr(p, n)[:, :, -fresh:] for p in given.problems])
        for n in ("query", "key", "value")
    )
    output, _ = run.call_updating(query, key, value, *caches, kept.astype(np.int32), updated=3, shape=(*query.shape[:3], value.shape[3]),
                                  **given.options)  # fmt: skip
    assert_each_is_right(run, given, [output[b : b + 1] for b in range(len(output))])


# -- a cache in pages --------------------------------------------------------------------------------------------------

pages = {"operation": PAGED, "given": sequences(queries="last", causal=True), "rows": (1, 2, 4, 16, 3), "spare": (0, 1, 3),
         "seed": range(100), "poison": (1e4, -1e4)}  # fmt: skip


def paged(run, given, rows, spare, seed, poison):
    """The output, with the pages of all sequences mixed by `seed`; unused rows, pages and table entries hold rubbish."""
    run.problems += given.problems
    needed = -(-given.lengths() // rows)
    count, width = int(needed.sum()) + spare, int(needed.max()) + min(spare, 1)
    rng = np.random.default_rng(seed)
    free = list(rng.permutation(count))
    table = rng.integers(0, count, (len(needed), width)).astype(np.int32)
    for entry, n in zip(table, needed, strict=True):
        entry[:n] = [free.pop() for _ in range(n)]
    pools = [given.in_pages(name, table, count, rows, filler_of(run, poison)) for name in ("key", "value")]
    query = np.concatenate([p.query for p in given.problems])
    return run.call(query, *pools, table, given.lengths(), shape=(*query.shape[:3], given.problems[0].sizes["E"]), **given.options)  # fmt: skip


@law(
    "A cache in pages, wherever they lie, is the cache in one piece; what no sequence holds is never read.",
    source="PagedAttention",
    **pages,
)
def test_paged_equals_contiguous(run, given, rows, spare, seed, poison):
    output = paged(run, given, rows, spare, seed, poison)
    assert_each_is_right(run, given, [output[b : b + 1] for b in range(len(output))])


@law("Where the pages lie does not matter.", source="PagedAttention", **pages, other=range(100, 200))
def test_page_order_does_not_matter(run, given, rows, spare, seed, poison, other):
    assume(sum(-(-given.lengths() // rows)) > 1)
    exact = [run.bound(p)[0] for p in given.problems]
    one, two = (paged(run, given, rows, spare, s, poison) for s in (seed, other))
    for b, bound in enumerate(exact):
        assert_within_bound(
            run.within(one[b : b + 1], bound), run.within(two[b : b + 1], bound), what=f"sequence {b}"
        )
