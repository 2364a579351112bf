"""Laws of sequences packed after one another."""

from __future__ import annotations

import numpy as np

from qkverify.properties.decode.serving import PACKED, REFUSALS, SIGNED, as_integers, assert_each_is_right
from qkverify.runs.assertions import assert_within_bound
from qkverify.strategies.sequences import sequences
from qkverify.verification.laws import law


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
    gradients = run.call_gradients(inputs, *starts(given), upstream=upstream, **given.options)
    for letter, names in (("Q", ("query",)), ("K", ("key", "value"))):
        at = given.starts(letter)
        for i, problem in enumerate(given.problems):
            exact = run.gradient_bounds(problem)
            for name in names:
                got = gradients[name][at[i] : at[i + 1]].swapaxes(0, 1)[None]
                assert_within_bound(
                    run.within(got, exact[name]), exact[name].value, what=f"gradient of {name}, sequence {i}"
                )


@law("The type of the integers that say where sequences start does not matter: the result is right, or the type is refused.",
     source="64-bit starts read as 32-bit ones", operation=PACKED, given=sequences(empty=True), integers=SIGNED, weight=0.5)  # fmt: skip
def test_starts_of_any_integer_type(run, given, integers):
    try:
        outputs = packed(run, given, integers)
    except REFUSALS:
        return
    assert_each_is_right(run, given, outputs)
