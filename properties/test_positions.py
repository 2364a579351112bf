"""Positional encodings and rotary embeddings: bounded, distinct, relative, and equal to the formula.

The invariants alone do not see a wrong base, so `agrees_with_formula` stands among them. Both functions of the sources are
laws on operations of their own: `positional_encoding(length, dim, *, layout)` and `rotary(x, positions, *, layout)`.

The positions of `rotary` are integers (L,) of either sign: relative ones, and those before the first token of a row that is
padded on the left, are negative. A function that has none refuses them (UnsupportedCase); counting them as zero, or as places
from the end of a table, is wrong.
"""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.problem.attention_problem import LAYOUTS
from qkverify.problem.byte_strategies import EDGES, Recipe, strategy
from qkverify.runs import exact_positions
from qkverify.runs.accepted_heads import accepted
from qkverify.runs.assertions import (
    assert_at_least,
    assert_at_most,
    assert_gradients,
    assert_true,
    assert_within_bound,
)
from qkverify.runs.run import active
from qkverify.strategies.operation_keywords import optional
from qkverify.verification.laws import law

lengths = (1, 2, 3, 4, 5, 8, 13, 20, 50, *EDGES, 600)
dims = (2, 4, 6, 8, 10, 16, 18, 24, 34, 62, 64, 66, 126, 130, 512, 768)
layouts = optional("layout", "interleaved", "concatenated")
rotary_layouts = optional("layout", "interleaved", "half")
seeds = range(1000)


def encoding(run, length, dim, layout):
    """The encoding (length, dim) with its bound."""
    exact = exact_positions.positional_encoding(run, length, dim, layout=layout)
    options = run.given(layout=layout, dtype=run.dtype, device=run.device)
    return run.within(run.call(length, dim, shape=(length, dim), **options), exact)


def exact_encoding(run, length, dim, layout):
    return exact_positions.positional_encoding(run, length, dim, layout=layout).value


def pairs(run, array, layout):
    """The first and the second members of all pairs: of an encoding the sines and the cosines."""
    half = array.shape[-1] // 2
    return (
        (array[..., 0::2], array[..., 1::2])
        if run.meant(layout=layout)["layout"] == "interleaved"
        else (array[..., :half], array[..., half:])
    )


pe = {"operation": "positional_encoding", "length": lengths, "dim": dims, "layout": layouts}


@law("Every entry lies between -1 and 1.", source="Illustrated Transformer, part 2: values in [-1, 1]", **pe)
def test_bounded_by_one(run, length, dim, layout):
    entries = encoding(run, length, dim, layout)
    assert_at_most(entries, 1.0, what="entry")
    assert_at_least(entries, -1.0, what="entry")


@law("The sine and the cosine of a pair have squares that sum to one.", source="sin^2 + cos^2 = 1", **pe)
def test_sine_and_cosine_pairs_have_unit_norm(run, length, dim, layout):
    sine, cosine = pairs(run, encoding(run, length, dim, layout), layout)
    assert_within_bound(sine * sine + cosine * cosine, 1.0, what="squared norm of a pair")


@law("The first row is sin 0 and cos 0: zeros and ones.", source="Illustrated Transformer, part 2", **pe)
def test_first_row_is_zero_and_one(run, length, dim, layout):
    sine, cosine = pairs(run, encoding(run, length, dim, layout)[0], layout)
    assert_within_bound(sine, 0.0, what="sine of position 0")
    assert_within_bound(cosine, 1.0, what="cosine of position 0")


@law(
    "A step of k positions is one rotation of every pair, the same wherever it starts.",
    source="'Attention is all you need', section 3.5: PE(p + k) is linear in PE(p)",
    **pe,
    step=range(301),
)
def test_shift_is_a_rotation(run, length, dim, layout, step):
    step %= length
    sine, cosine = pairs(run, encoding(run, length, dim, layout), layout)
    turn_sine, turn_cosine = sine[step], cosine[step]  # sin and cos of k w: row k itself
    n = length - step
    assert_within_bound(sine[:n] * turn_cosine + cosine[:n] * turn_sine, sine[step:], what="rotated sine")
    assert_within_bound(cosine[:n] * turn_cosine - sine[:n] * turn_sine, cosine[step:], what="rotated cosine")


@law(
    "The inner product of two positions depends on their distance only.", source="sum of cos(w (p - q))", **pe
)
def test_inner_product_depends_on_distance_only(run, length, dim, layout):
    entries = encoding(run, length, dim, layout)
    for distance in {0, 1, length // 2, length - 1}:
        products = (entries[: length - distance] * entries[distance:]).sum(-1)
        assert_within_bound(products, products[:1], what=f"inner product at distance {distance}")


@law("The two layouts hold the same numbers, permuted.", source="interleaved and concatenated encodings", operation="positional_encoding", length=lengths, dim=dims,
     when=lambda run: None if run.offers_parameter("layout") else "not offered: layout")  # fmt: skip
def test_concatenated_is_interleaved_permuted(run, length, dim):
    interleaved = encoding(run, length, dim, "interleaved")
    order = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])
    assert_within_bound(encoding(run, length, dim, "concatenated"), interleaved[:, order], what="entry")


@law(
    "A longer encoding begins with the shorter one.",
    source="extends to unseen lengths",
    **pe,
    extra=(1, 7, 100),
)
def test_prefix_of_longer_is_same(run, length, dim, layout, extra):
    assert_within_bound(
        encoding(run, length + extra, dim, layout)[:length], encoding(run, length, dim, layout), what="entry"
    )


@law("Lengths never seen before work the same: thousands of positions.", source="Illustrated Transformer, part 2: can scale to unseen lengths", operation="positional_encoding",
     dim=(2, 8, 16, 512), layout=layouts, length=(1000, 5000, 20000), weight=0.2)  # fmt: skip
def test_unseen_lengths(run, length, dim, layout):
    entries = encoding(run, length, dim, layout)
    assert_within_bound(entries, exact_encoding(run, length, dim, layout), what="entry")


@law("No two positions have the same encoding.", source="positions must be told apart", **pe)
def test_positions_are_distinct(run, length, dim, layout):
    entries = encoding(run, length, dim, layout).value
    assert_true(len(np.unique(entries, axis=0)) == length, "two positions have the same encoding")


@law(
    "Entry 2i of position p is sin(p / 10000^(2i/d)), entry 2i+1 the cosine.",
    source="'Attention is all you need', section 3.5",
    **pe,
)
def test_agrees_with_formula(run, length, dim, layout):
    entries = encoding(run, length, dim, layout)
    assert_within_bound(entries, exact_encoding(run, length, dim, layout), what="entry")


# -- rotary ----------------------------------------------------------------------------------------------------------


def turned(run, x, positions, layout):
    """rotary(x, positions) with its bound."""
    exact = exact_positions.rotary(run, x, positions, layout=layout)
    return run.within(run.call(x, positions, shape=x.shape, **run.given(layout=layout)), exact)


def exactly_turned(run, x, positions, layout):
    return exact_positions.rotary(run, x, positions, layout=layout).value


def draw_x(run, length, dim, seed, batch=2, heads=3):
    assume(length * dim <= 40 * 256)
    return np.random.default_rng(seed).standard_normal((batch, heads, length, dim)).astype(run.numpy_dtype)


rope = {
    "operation": "rotary",
    "length": (1, 2, 3, 5, 17, 40, *EDGES),
    "dim": (2, 4, 6, 8, 16, 18, 20, 24, 34, 62, 64, 66, 72, 80, 126, 128, 130, 256),
    "layout": rotary_layouts,
    "seed": seeds,
}


@law("Rotating does not change the length of any pair.", source="RoFormer: a rotation", **rope)
def test_rotary_keeps_norm(run, length, dim, layout, seed):
    x = draw_x(run, length, dim, seed)
    first, second = pairs(run, turned(run, x, np.arange(length), layout), layout)
    a, b = pairs(run, x.astype(np.float64), layout)
    assert_within_bound(first * first + second * second, a * a + b * b, what="squared norm of a pair")


@law(
    "Scores of rotated queries and keys depend on the distance of their positions only.",
    source="RoFormer, equation 11",
    **rope,
    shift=(1, 5, 100),
)
def test_rotary_scores_depend_on_distance_only(run, length, dim, layout, seed, shift):
    query, key = draw_x(run, length, dim, seed), draw_x(run, length, dim, seed + 1)
    here, there = np.arange(length), np.arange(length) + shift
    scores = [
        turned(run, query, at, layout) @ turned(run, key, at, layout).swapaxes(-1, -2) for at in (here, there)
    ]
    assert_within_bound(scores[1], scores[0], what="score")


@law("Position zero is not rotated.", source="RoFormer: rotation by zero", **rope)
def test_rotary_position_zero_is_identity(run, length, dim, layout, seed):
    x = draw_x(run, length, dim, seed)
    assert_within_bound(
        turned(run, x, np.zeros(length, dtype=np.int64), layout), x.astype(np.float64), what="entry"
    )


@law("The two layouts are the same rotation of permuted entries.", source="interleaved (GPT-J) and half (GPT-NeoX) layouts", operation="rotary", length=rope["length"], dim=rope["dim"], seed=seeds,
     when=lambda run: None if run.offers_parameter("layout") else "not offered: layout")  # fmt: skip
def test_rotary_layouts_are_permutations(run, length, dim, seed):
    x, at = draw_x(run, length, dim, seed), np.arange(length)
    order = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])
    half = turned(run, np.ascontiguousarray(x[..., order]), at, "half")
    assert_within_bound(half, turned(run, x, at, "interleaved")[..., order], what="entry")


@law(
    "Rotary turns the pair i of position p by p / 10000^(2i/d), each batch entry and head alike.",
    source="RoFormer, section 3.2.2",
    **rope,
    start=(0, 1, 9, 1000, 3000, 5000, 20000),
)
def test_rotary_agrees_with_formula(run, length, dim, layout, seed, start):
    x, at = draw_x(run, length, dim, seed), np.arange(length) + start
    assert_within_bound(turned(run, x, at, layout), exactly_turned(run, x, at, layout), what="entry")


@law(
    "At a negative position a token is turned the other way, by as much.",
    source="RoFormer, section 3.2.2: an angle p theta of either sign; relative positions, left padding",
    **rope,
    start=(0, 1, 100, 3000),
)
def test_rotary_at_negative_positions(run, length, dim, layout, seed, start):
    x, at = draw_x(run, length, dim, seed), -(np.arange(length) + start)
    assert_within_bound(turned(run, x, at, layout), exactly_turned(run, x, at, layout), what="entry")


@law(
    "The gradient of a rotated token is the upstream gradient turned back by the same angles.",
    source="a rotation's transpose is its inverse",
    needs="gradients",
    **rope,
    start=(0, 1, 9, 1000),
)
def test_rotary_gradient_turns_back(run, length, dim, layout, seed, start):
    x, at = draw_x(run, length, dim, seed), np.arange(length) + start
    upstream = draw_x(run, length, dim, seed + 1)
    exact = exact_positions.rotary_gradient(run, at, upstream, layout=layout)
    gradients = run.call_gradients({"x": x}, at, upstream=upstream, **run.given(layout=layout))
    assert_gradients(run, gradients, {"x": exact})


@law("How the tokens lie in memory does not matter.", source="heads of a projection seen through swapped axes", **rope,
     memory=("heads after length", "last axes swapped", "every second", "slice of longer"))  # fmt: skip
def test_rotary_layout_invariance(run, length, dim, layout, seed, memory):
    x, at = draw_x(run, length, dim, seed), np.arange(length)
    assert_within_bound(turned(run, LAYOUTS[memory](x), at, layout), turned(run, x, at, layout), what="entry")


@law("Positions may come in any order and at any distance: each token is turned by its own.", source="packed sequences and caches have positions of their own", **rope,
     top=(10, 2048, 9999))  # fmt: skip
def test_rotary_positions_in_any_order(run, length, dim, layout, seed, top):
    x, at = draw_x(run, length, dim, seed), np.random.default_rng(seed).integers(0, top, length)
    assert_within_bound(turned(run, x, at, layout), exactly_turned(run, x, at, layout), what="entry")


@law(
    "A batch entry is rotated the same alone as in its batch.",
    source="batch entries are independent",
    **rope,
)
def test_rotary_batch_independence(run, length, dim, layout, seed):
    x, at = draw_x(run, length, dim, seed), np.arange(length)
    together = turned(run, x, at, layout)
    for b in range(len(x)):
        alone = turned(run, np.ascontiguousarray(x[b : b + 1]), at, layout)
        assert_within_bound(alone, together[b : b + 1], what="entry")


# -- slopes ----------------------------------------------------------------------------------------------------------


def _number(choices):
    run = active()
    return choices.pick("heads", [n for n in range(1, 161) if run is None or accepted(run, n)])


numbers_of_heads = strategy(Recipe({"heads": 2}, _number))


@law("Slopes fall geometrically from 2^(-8/H) to 2^-8; between powers of two they interleave.", source="Press et al. 2021, section 3 and its published code", operation="alibi_slopes",
     heads=numbers_of_heads)  # fmt: skip
def test_alibi_slopes(run, heads):
    exact = exact_positions.slopes(run, heads)
    assert_within_bound(run.within(run.call(heads, shape=(heads,)), exact), exact.value, what="slope")


@law(
    "The slopes of every number of heads are distinct, positive and below one.",
    source="Press et al. 2021",
    operation="alibi_slopes",
    exact=True,
    heads=numbers_of_heads,
)
def test_alibi_slopes_are_distinct(run, heads):
    slopes = run.call(heads, shape=(heads,)).astype(np.float64)
    assert_true(
        (slopes > 0).all() and (slopes < 1).all() and len(np.unique(slopes)) == heads,
        "slopes are not distinct numbers between 0 and 1",
    )
