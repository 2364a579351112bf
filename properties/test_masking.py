"""Masks: what a query must not see has no influence, and every way of hiding a key is the same way.

Poison is the sharp tool here: what is invisible is overwritten, and not one bit of the output may change. NaN and inf are
poured in where the implementation ignores invisible values; where it is known to read them (0 * NaN), large finite numbers.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
from hypothesis import assume

from qkverify.contract.empty_rows import value_of
from qkverify.reference.masks import visible
from qkverify.rounding import EXACT, FORMATS, Bounded
from qkverify.runs.assertions import assert_identical, assert_true, assert_within_bound
from qkverify.runs.attention_run import unjudged
from qkverify.runs.hidden_value_corruption import assert_poison_is_without_effect, judged, unseen
from qkverify.strategies.attention_problems import first_key_alone, problems
from qkverify.verification.laws import law

causal = problems(
    use=("causal",), only=("causal", "scale", "bias", "mask", "window", "softcap", "key_lengths")
)


@law("A query does not see the future: overwriting later keys and values changes nothing.", source="masked decoder attention", needs="causal",
     exact=True, problem=causal, cut=range(201), which=range(6))  # fmt: skip
def test_causal_ignores_future(run, problem, cut, which):
    s = problem.sizes
    first = cut % s["K"]
    hidden = np.zeros((s["B"], s["G"], s["K"]), dtype=bool)
    hidden[:, :, first:] = True
    blind = ~visible(s["B"], s["Q"], s["K"], causal=True, causal_alignment=problem.causal_alignment)[
        ..., first:
    ].any(-1)
    rows = np.broadcast_to(blind, (s["B"], s["H"], s["Q"])) & judged(problem)
    assert_poison_is_without_effect(run, problem, hidden, which, rows)


@law("Output i has no gradient in a later key or value: upstream on early rows gives exact zeros for the keys that they cannot see.",
     source="masked decoder attention", needs=("causal", "gradients"), exact=True, problem=problems(use=("causal",), only=("causal", "scale"), upstream=True),
     cut=range(201))  # fmt: skip
def test_causal_gradient_ignores_future(run, problem, cut):
    s = problem.sizes
    upstream = problem.upstream.copy()
    upstream[:, :, cut % s["Q"] + 1 :] = 0
    seen = visible(s["B"], s["Q"], s["K"], causal=True, causal_alignment=problem.causal_alignment)
    if problem.empty_row != "zero":  # the mean of all values, say, which passes its gradient on to all
        upstream[~np.broadcast_to(seen.any(-1), upstream.shape[:-1])] = 0
    reached = seen[..., : cut % s["Q"] + 1, :].any(-2)
    hidden = np.broadcast_to(~reached, (s["B"], s["G"], s["K"]))
    early = problem.replace(upstream=upstream)
    assume(run.in_range(early))
    gradients = run.gradient_values(early)
    for name in ("key", "value"):
        assert_identical(
            gradients[name][hidden], np.zeros_like(gradients[name][hidden]), what=f"gradient of {name}"
        )


@law("The first n queries and keys give the first n outputs: what follows does not matter.", source="masked decoder attention; decoding step by step",
     needs="causal", problem=problems(use=("causal",), only=("causal", "scale", "softcap", "window"), sizes={"K": "Q"}), cut=range(1, 201))  # fmt: skip
def test_causal_prefix(run, problem, cut):
    n = min(cut, problem.sizes["Q"])
    assume(run.implementation.accepts({**problem.sizes, "Q": n, "K": n}) is None)
    prefix = problem.replace(
        query=problem.query[:, :, :n], key=problem.key[:, :, :n], value=problem.value[:, :, :n], layouts={}
    )
    assert_within_bound(run(prefix), run(problem)[:, :, :n])


@law("Where queries and keys differ in number, causal is aligned as declared.", source="bottom-right: a query may see a key exactly when the key is not later than it",
     needs="causal", problem=problems(use=("causal",), only=("causal", "scale")))  # fmt: skip
def test_causal_alignment_when_lengths_differ(run, problem):
    assume(problem.sizes["Q"] != problem.sizes["K"])
    assert_within_bound(run(problem), run.exact(problem))


@law("Causal is the lower triangular mask.", source="masked decoder attention", needs=("causal", "mask"),
     problem=problems(use=("causal",), only=("causal", "scale", "bias", "softcap", "window"), without=("mask",)))  # fmt: skip
def test_causal_equals_explicit_mask(run, problem):
    s = problem.sizes
    triangle = visible(s["B"], s["Q"], s["K"], causal=True, causal_alignment=problem.causal_alignment)
    drawn = (
        problem.replace(bias=None) if "bias" in problem.options and run.implementation.exclusive else problem
    )
    agree(run, drawn.replace(causal=False, mask=triangle.reshape(1, 1, *triangle.shape[-2:])), drawn)


def agree(run, hidden, otherwise):
    """Two ways to hide the same keys give the same, but for rows that see none where they differ in what those get."""
    apart = ~hidden.some_visible & (hidden.empty_row != otherwise.empty_row)
    assert_within_bound(unjudged(run(hidden), apart[..., None]), run(otherwise))


@law("A window is the mask of its band.", source="sliding window attention: keys within [i - left, i + right], inclusive", needs=("window", "mask"),
     problem=problems(use=("window",), only=("window", "causal", "scale")))  # fmt: skip
def test_window_equals_explicit_mask(run, problem):
    s = problem.sizes
    band = visible(s["B"], s["Q"], s["K"], window=problem.window, causal_alignment=problem.causal_alignment)
    agree(run, problem.replace(window=None, mask=band.reshape(1, 1, *band.shape[-2:])), problem)


@law("The edges of a window are inclusive on both sides, and a window wider than the sequence hides nothing.", source="sliding window attention",
     needs="window", problem=problems(use=("window",), only=("window", "causal", "key_lengths", "scale")),
     left=(0, 1, 2, 7, None, 1000), right=(0, 1, 2, 7, None, 1000))  # fmt: skip
def test_window_edges_are_exact(run, problem, left, right):
    edged = problem.replace(window=(left, right))
    assert_within_bound(run(edged), run.exact(edged))


@law("Padding is never read: overwriting keys and values past the length changes nothing.", source="padding masks; ragged batches", needs="key_lengths",
     exact=True, problem=problems(use=("key_lengths",)), which=range(6))  # fmt: skip
def test_padding_is_never_read(run, problem, which):
    s = problem.sizes
    hidden = np.arange(s["K"]) >= problem.key_lengths[:, None, None]
    hidden = np.broadcast_to(hidden, (s["B"], s["G"], s["K"]))
    assert_poison_is_without_effect(run, problem, hidden, which, judged(problem))


@law("A key that no query sees is never read: overwriting it and its value changes nothing.", source="masked attention", needs="mask",
     exact=True, problem=problems(use=("mask",)), which=range(6))  # fmt: skip
def test_masked_keys_have_no_influence(run, problem, which):
    assert_poison_is_without_effect(run, problem, unseen(problem), which, judged(problem))


@law("A padded batch entry equals the same entry cut to its length.", source="ragged batches", needs="key_lengths",
     problem=problems(use=("key_lengths",), only=("key_lengths", "scale", "softcap")), entry=range(3))  # fmt: skip
def test_padded_equals_unpadded(run, problem, entry):
    b = entry % problem.sizes["B"]
    n = int(problem.key_lengths[b])
    assume(n > 0 and run.implementation.accepts({**problem.sizes, "B": 1, "K": n}) is None)
    alone = problem.replace(query=problem.query[b : b + 1], key=problem.key[b : b + 1, :, :n], value=problem.value[b : b + 1, :, :n],
                            key_lengths=None, layouts={})  # fmt: skip
    assert_within_bound(run(alone), run(problem)[b : b + 1])


@law("A boolean mask is a bias of minus infinity.", source="softmax: exp(-inf) = 0", needs=("mask", "bias"),
     problem=problems(use=("mask",), only=("mask", "scale", "causal", "softcap")))  # fmt: skip
def test_boolean_mask_equals_minus_inf_bias(run, problem):
    assume(problem.some_visible.all())  # rows that see nothing are the business of the policy
    hiding = np.where(problem.mask, 0.0, -np.inf).astype(run.numpy_dtype)
    assert_within_bound(run(problem.replace(mask=None, bias=hiding)), run(problem))


@law("A mask that allows everything changes nothing, whatever else is in use.", source="masked attention", needs="mask",
     problem=problems(without=("mask",)))  # fmt: skip
def test_all_true_mask_is_neutral(run, problem):
    s = problem.sizes
    taken = {
        pair[0] if pair[1] == "mask" else pair[1] for pair in run.implementation.exclusive if "mask" in pair
    }
    assume(not taken & problem.options.keys())
    assert_within_bound(run(problem.replace(mask=np.ones((1, 1, s["Q"], s["K"]), dtype=bool))), run(problem))


@law("A mask that differs in one element from a usual one (causal, a band, padding, none) is not taken for it.", source="short cuts: a mask known by its corners or its first head",
     needs="mask", problem=problems(only=("scale",), sizes={"K": "Q"}, long=False, tame=True),
     kind=("causal", "band", "padding", "none"), row=range(64), column=range(64), last=(False, True), weight=0.5)  # fmt: skip
def test_nearly_regular_masks(run, problem, kind, row, column, last):
    s = problem.sizes
    i, j = np.indices((s["Q"], s["K"]))
    shapes = {"causal": j <= i, "band": abs(j - i) <= 1, "padding": 2 * j < s["K"], "none": j >= 0}
    mask = np.tile(shapes[kind], (s["B"], s["H"], 1, 1) if last else (1, 1, 1, 1))
    mask[-1, -1, row % s["Q"], column % s["K"]] ^= True
    masked = problem.replace(mask=mask)
    assert_within_bound(run(masked), run.exact(masked))


@law("A mask of any shape that broadcasts means the mask that it broadcasts to.", source="NumPy broadcasting, from the right", needs="mask",
     problem=problems(use=("mask",), only=("mask", "scale")), pattern=range(16), drop=(False, True), bits=range(2**20 + 1))  # fmt: skip
def test_mask_broadcasts(run, problem, pattern, drop, bits):
    s = problem.sizes
    shape = tuple(s[letter] if pattern >> i & 1 else 1 for i, letter in enumerate("BHQK"))
    mask = np.random.default_rng(bits).random(shape) < 0.7
    whole = np.ascontiguousarray(np.broadcast_to(mask, (s["B"], s["H"], s["Q"], s["K"])))
    small = mask
    while drop and small.ndim > 2 and small.shape[0] == 1:
        small = small[0]
    layouts = {name: place for name, place in problem.layouts.items() if name != "mask"}
    given = problem.replace(layouts=layouts)
    assert_within_bound(run(given.replace(mask=small)), run(given.replace(mask=whole)))


@law("A bias of any shape that broadcasts means the bias that it broadcasts to.", source="NumPy broadcasting, from the right", needs="bias",
     problem=problems(use=("bias",), only=("bias", "scale")), pattern=range(16), drop=(False, True), bits=range(2**20 + 1))  # fmt: skip
def test_bias_broadcasts(run, problem, pattern, drop, bits):
    s = problem.sizes
    shape = tuple(s[letter] if pattern >> i & 1 else 1 for i, letter in enumerate("BHQK"))
    bias = np.random.default_rng(bits).standard_normal(shape).astype(run.numpy_dtype)
    whole = np.ascontiguousarray(np.broadcast_to(bias, (s["B"], s["H"], s["Q"], s["K"])))
    while drop and bias.ndim > 2 and bias.shape[0] == 1:
        bias = bias[0]
    layouts = {name: place for name, place in problem.layouts.items() if name != "bias"}
    given = problem.replace(layouts=layouts)
    assert_within_bound(run(given.replace(bias=bias)), run(given.replace(bias=whole)))


@law("All kinds of masks combine: a key is visible exactly if each of them allows it.", source="masks compose by 'and'",
     problem=problems(), when=lambda run: None if len({"mask", "causal", "window", "key_lengths"} & run.implementation.offers) > 1 else "has one kind of mask")  # fmt: skip
def test_masks_compose(run, problem):
    assume(len({"mask", "causal", "window", "key_lengths"} & problem.options.keys()) > 1)
    assert_within_bound(run(problem), run.exact(problem))


@law("A query that sees no key gets what the implementation declares: zero, NaN or the mean.", source="safe softmax; the field does not agree, so it is declared",
     problem=problems(without=("sinks",)), row=range(201), which=range(6),
     when=lambda run: None if {*HIDES} & run.implementation.offers else "cannot hide every key from a query")  # fmt: skip
def test_fully_masked_rows_follow_policy(run, problem, row, which):
    ways = [way for way in HIDES if run.offers(way) and not _taken(run, problem, way)]
    assume(ways)
    way = ways[which % len(ways)]
    hidden = problem.replace(**{way: HIDES[way](run, problem, row)})
    assert_within_bound(run(hidden), run.exact(hidden))


def _by_mask(run, problem, row):
    s = problem.sizes
    if problem.mask is None:
        mask = np.ones((1, 1, s["Q"], s["K"]), dtype=bool)
    else:
        mask = np.array(np.broadcast_to(problem.mask, (s["B"], s["H"], s["Q"], s["K"])))
    mask[:, :, row % s["Q"]] = False
    return mask


def _by_lengths(run, problem, row):
    s = problem.sizes
    lengths = np.full(s["B"], s["K"], np.int32) if problem.key_lengths is None else problem.key_lengths.copy()
    lengths[row % s["B"]] = 0
    return lengths


def _by_bias(run, problem, row):
    s = problem.sizes
    if problem.bias is None:
        bias = np.zeros((1, 1, s["Q"], s["K"]), run.numpy_dtype)
    else:
        bias = np.array(np.broadcast_to(problem.bias, (s["B"], s["H"], s["Q"], s["K"])))
    bias[:, :, row % s["Q"]] = -np.inf
    return bias


HIDES = {"mask": _by_mask, "key_lengths": _by_lengths, "bias": _by_bias}


def _taken(run, problem, option):
    return any(
        option in pair and problem.options.keys() & set(pair) - {option}
        for pair in run.implementation.exclusive
    ) or (
        "bias" in problem.options
        and run.implementation.parameters.get("mask") == run.implementation.parameters.get("bias")
    )


@law("A query that sees no key has zero gradient and gives none.", source="safe softmax: the output of an empty row is a constant", needs=("gradients", "mask"),
     exact=True, problem=problems(use=("mask",), only=("mask", "scale", "causal"), upstream=True),
     when=lambda run: None if value_of(run.semantics["empty_rows"], "mask") == "zero" else f"empty rows are {run.semantics['empty_rows']}")  # fmt: skip
def test_empty_rows_give_zero_gradient(run, problem):
    s = problem.sizes
    mask = np.array(np.broadcast_to(problem.mask, (s["B"], s["H"], s["Q"], s["K"])))
    mask[:, :, 0] = False
    hidden = problem.replace(mask=mask)
    empty = ~hidden.some_visible
    assume(hidden.empty_row == "zero" and run.in_range(hidden))
    gradients = run.gradient_values(hidden)
    assert_identical(
        gradients["query"][empty], np.zeros_like(gradients["query"][empty]), what="gradient of query"
    )
    dark = unseen(hidden)
    for name in ("key", "value"):
        assert_identical(
            gradients[name][dark], np.zeros_like(gradients[name][dark]), what=f"gradient of {name}"
        )


@law("ALiBi lowers a score by slope times distance, no more and no less.", source="Press et al. 2021: the penalty is linear in the distance", needs=("alibi_slopes", "bias"),
     problem=problems(use=("alibi_slopes",), only=("alibi_slopes", "scale", "softcap", "causal")))  # fmt: skip
def test_alibi_is_linear_in_distance(run, problem):
    s = problem.sizes
    start = s["K"] - s["Q"] if problem.causal_alignment == "bottom-right" else 0
    away = np.abs(np.arange(s["K"]) - (np.arange(s["Q"])[:, None] + start))
    bias = -problem.alibi_slopes[:, None, None].astype(np.float64) * away
    rounded = bias.astype(run.numpy_dtype)
    assume((rounded.astype(np.float64) == bias).all())
    assert_within_bound(run(problem.replace(alibi_slopes=None, bias=rounded[None])), run(problem))


@law("Every accepted option has an effect: if the exact result changes by more than both bounds, so does the result.", source="options that are silently ignored",
     problem=problems(tame=True))  # fmt: skip
def test_accepted_parameters_matter(run, problem):
    for name in problem.options:
        if name == "return_lse":
            continue
        without = problem.replace(**{name: False if name == "causal" else None})
        moved = (
            np.abs(run.exact(problem) - run.exact(without))
            > run.bound(problem)[0].errors + run.bound(without)[0].errors
        )
        if moved.any():
            assert_within_bound(
                run(problem)[moved], run.exact(problem)[moved], what=f"output where {name} matters"
            )


@law("NaN in a query, key or value reaches every row that sees it: a broken input must not look fine.", source="nan_to_num against empty rows",
     problem=problems(long=False, tame=True, layouts=False), which=range(200), name=("value", "key", "query"), alone=(False, False, True))  # fmt: skip
def test_nan_goes_where_it_must(run, problem, which, name, alone):
    """The softmax of one key is 1 whatever its score is, unless that is NaN: a short cut forgets it."""
    if alone:
        problem = first_key_alone(run, problem)
    s = problem.sizes
    array = np.array(getattr(problem, name))
    place = which % array.shape[2]
    array[:, :, place] = np.nan
    got = run.values(problem.replace(**{name: array}))
    touched = (
        problem.visible[..., place]
        if name != "query"
        else (np.arange(s["Q"]) == place) & problem.some_visible
    )
    rows = np.isnan(got.astype(np.float64)).all(-1)
    assert_true(rows[touched], f"{name} {place} is NaN, but rows that see it are not")


@law("Hidden keys have no weight, however low the scores of the visible keys are.", source="a finite number for minus infinity: -1e4, -1e5, -1e9",
     problem=problems(only=("mask", "causal", "key_lengths", "window", "scale"), long=False, layouts=False), size=(1024.0, 16384.0, 262144.0, 128.0), sign=(-1.0, -1.0, 1.0))  # fmt: skip
def test_hidden_keys_at_any_score(run, problem, size, sign):
    """All scores are one number, +-size^2 times the scale: each row is the mean of the values that it sees."""
    assume(not problem.visible.all())
    top = float(ml_dtypes.finfo(run.numpy_dtype).max)
    query, key = np.zeros_like(problem.query), np.zeros_like(problem.key)
    query[..., 0], key[..., 0] = sign * min(size, top), min(size, top)
    value = np.where(unseen(problem)[..., None], 1e4, problem.value.astype(np.float64))
    low = problem.replace(query=query, key=key, value=value.astype(run.numpy_dtype))
    assert_within_bound(run(low), run.exact(low))


@law("A bias of the lowest number hides a key as -inf does; a row of nothing else shares its weight, or is empty as declared.",
     source="additive masks of finfo.min, as transformers makes them", needs="bias", seed=range(1000),
     problem=problems(only=("scale",), tame=True, long=False, layouts=False, use=("bias",)))  # fmt: skip
def test_lowest_number_hides(run, problem, seed):
    """The lowest number plus a score, or times log2(e), may pass the end of the format: such a row sees nothing."""
    small, hidden = absorbed(run, problem, seed)
    lowered, exact = biased(run, small, hidden, lowest_of(run)), biased(run, small, hidden, -np.inf)
    rows = np.broadcast_to(~hidden.all(-1), small.query.shape[:3])
    bound = run.bound(exact)[0]
    assert_within_bound(run.within(run.values(lowered)[rows], bound[rows]), bound.value[rows])
    ones = {"value": np.ones_like(problem.value)}
    plain = run.bound(small.replace(bias=None, **ones))[0]
    sums = run.within(run.values(lowered.replace(**ones)), plain)
    empty = {"zero": sums.value == 0, "nan": np.isnan(sums.value)}.get(exact.empty_row, False)
    assert_within_bound(sums, np.where(empty & ~rows[..., None], sums.value, 1.0), what="sum of weights")


def absorbed(run, problem, seed):
    """The problem with scores of at most 18, which the lowest number absorbs, and bool (B,1,Q,K): which keys it hides."""
    s = problem.sizes
    hidden = np.random.default_rng(seed).random((s["B"], 1, s["Q"], s["K"])) < 0.6
    query, key = (
        np.clip(x.astype(np.float64), -3, 3) / max(s["D"], 1) ** 0.5 for x in (problem.query, problem.key)
    )
    return problem.replace(query=query.astype(run.numpy_dtype), key=key.astype(run.numpy_dtype)), hidden


def biased(run, problem, hidden, number):
    """The problem with a number as the bias of hidden keys, and zero as that of the others."""
    return problem.replace(bias=np.where(hidden, number, 0.0).astype(run.numpy_dtype))


def lowest_of(run):
    return float(ml_dtypes.finfo(run.numpy_dtype).min)


@law("A row of nothing but the lowest number that shares its weight has a log-sum-exp of that number: it is not empty.",
     source="merging parts by a log-sum-exp that leaves out what the output holds", needs=("bias", "return_lse"), seed=range(1000),
     when=lambda run: "a logarithm to base 2 of it passes the end of the format" if run.semantics["lse"] == "base2" else None,
     problem=problems(only=("scale",), tame=True, long=False, layouts=False, use=("bias",)))  # fmt: skip
def test_lowest_number_in_log_sum_exp(run, problem, seed):
    """It lies between the largest score and that plus log K, and is stored. Of the number itself there is no bound, at the end of
    the format: that of its half, twice, is as good, for rounding is relative."""
    (small, hidden), p, lowest = absorbed(run, problem, seed), run.precision, lowest_of(run)
    value = np.ones_like(problem.value)
    output, got = run.outputs(biased(run, small, hidden, lowest).replace(value=value, return_lse=True))
    spread = 9.0 * abs(problem.sizes["D"] ** -0.5 if problem.scale is None else problem.scale) + np.log(
        max(problem.sizes["K"], 1)
    )
    near = np.max(Bounded([lowest / 2], 0.0, p), axis=0) + Bounded(0.0, spread / 2, p)
    near = +Bounded(near.value, near.errors, replace(p, output=FORMATS[got.dtype.name]), 0.0)
    # An empty row may hold the mean of the values, and then looks as if it shared.
    shared = (
        hidden.all(-1)
        & (output > 0).all(-1)
        & (not biased(run, small, hidden, -np.inf).empty_row.startswith("uniform"))
    )
    lse = Bounded(
        np.where(shared, got.astype(np.float64), lowest), np.where(shared, 2.0 * near.errors, 0.0), EXACT
    )
    assert_within_bound(lse, np.full(got.shape, lowest), what="log-sum-exp")
