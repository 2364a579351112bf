"""Laws of a cache that grows."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.contract import OPERATIONS
from qkverify.problem.byte_strategies import several
from qkverify.properties.decode.serving import (
    CACHED,
    CACHES,
    INTEGERS,
    REFUSALS,
    as_integers,
    assert_each_is_right,
    assert_read_rows_are_right,
    assert_unread_rows_get_nothing,
    filler_of,
)
from qkverify.reference.cached_vjp import taken_apart
from qkverify.runs.assertions import assert_identical, assert_within_bound
from qkverify.strategies.sequences import sequences
from qkverify.verification.laws import law


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


@law("Changes of the cache between two calls count: entries change places, and tokens are removed again.", source="a copy of the cache kept beside it",
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
    gradients = run.call_gradients(
        {name: named[name] for name in inputs}, *rest, upstream=above, written=CACHES, **given.options
    )
    kept, room = named["lengths"], named["key_cache"].shape[2]
    exact = taken_apart([run.gradient_bounds(p) for p in given.problems], kept, room)
    return gradients, exact, np.arange(room)[:, None] < kept[:, None, None, None]


@law("The gradients of new tokens, and of those that the cache held before, are those that each sequence has alone.",
     source="a cache in which a prefix is learnt: gradients go through what is written in place", **grown, frozen=(False, False, True))  # fmt: skip
def test_cached_gradients_equal_alone(run, given, spare, poison, frozen):
    gradients, exact, read = cached_gradients(
        run, given, spare, poison, frozen and run.implementation.vjp is None
    )
    assert_read_rows_are_right(run, gradients, exact, read)


@law("Places of a cache that are written over, and those behind the last token, get zero gradient, exactly, whatever they held.",
     source="what was there before an assignment has no influence", **grown, exact=True)  # fmt: skip
def test_unread_cache_gets_zero_gradient(run, given, spare, poison):
    gradients, _, read = cached_gradients(run, given, spare, poison)
    assert_unread_rows_get_nothing(gradients, CACHES, read)
