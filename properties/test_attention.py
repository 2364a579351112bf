"""Attention as a whole: against the reference, against its steps, and by what must not change it."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume

from qkverify.errors import UnsupportedCase
from qkverify.probes.attention_conventions import HARDLY_A_SCORE
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import EXACT, FORMATS, LN_2, Bounded
from qkverify.runs.assertions import (
    assert_at_least,
    assert_at_most,
    assert_identical,
    assert_true,
    assert_within_bound,
)
from qkverify.strategies.attention_problems import problems, real_problems
from qkverify.strategies.exact_changes import scaled
from qkverify.verification.laws import law

PERMUTABLE = ("scale", "softcap", "sinks")


@law("Attention is softmax(Q K^T * scale) V, with every option that is offered in any combination.", source="'Attention is all you need', equation 1",
     problem=problems(extremes=True), weight=2.0)  # fmt: skip
def test_agrees_with_reference(run, problem):
    assert_within_bound(run(problem), run.exact(problem))


@law("Attention equals its steps done word by word: score, divide by sqrt(d), softmax, weigh, sum.", source="Illustrated Transformer, part 2; dot products written out",
     problem=problems(only=("causal",), sizes={"B": 1, "G": 1, "H": 1}, long=False, tame=True))  # fmt: skip
def test_equals_word_by_word_steps(run, problem):
    """Plain Python loops over single numbers: independent of the reference and of every matrix product."""
    query, key, value = (
        x[0, 0].astype(np.float64).tolist() for x in (problem.query, problem.key, problem.value)
    )
    size = len(query[0])
    rows = []
    for i, q in enumerate(query):
        scores = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(size) for k in key]
        row_visible = problem.visible[0, 0, i]
        if not row_visible.any():
            rows.append(run.exact(problem)[0, 0, i].tolist())
            continue
        top = max(s for s, visible in zip(scores, row_visible, strict=True) if visible)
        weights = [
            math.exp(s - top) if visible else 0.0 for s, visible in zip(scores, row_visible, strict=True)
        ]
        rows.append(
            [
                sum(w * v[e] for w, v in zip(weights, value, strict=True)) / sum(weights)
                for e in range(len(value[0]))
            ]
        )
    loops = np.array(rows)[None, None]
    # The loops round as a float64 implementation does, and so have the oracle's own bound.
    assert_within_bound(run(problem), Bounded(loops, run.oracle(problem).errors, EXACT))


@law("A one-hot query pulls its row out of the keys: attention is a differentiable lookup table.", source="'Attention as matrix multiplication' (e2eml.school)",
     problem=problems(only=("scale",), long=False, tame=True), sharpness=(0.0, 1.0, 64.0, 4096.0))  # fmt: skip
def test_one_hot_lookup(run, problem, sharpness):
    """Keys are one-hot rows; query i asks for row i mod D. The sharper the scale, the nearer the output is to that value."""
    s = problem.sizes
    table, targets = np.eye(s["D"]), np.arange(s["Q"]) % s["D"]
    key = np.broadcast_to(table[np.arange(s["K"]) % s["D"]], problem.key.shape).astype(run.numpy_dtype)
    query = np.broadcast_to(table[targets], problem.query.shape).astype(run.numpy_dtype)
    sharp = {"scale": sharpness} if run.offers("scale") else {}
    lookup = problem.replace(query=query, key=key, **sharp)
    holders = np.arange(s["K"])[None, :] % s["D"] == targets[:, None]  # (Q,K): the keys that match
    output = run(lookup)
    assert_within_bound(output, run.exact(lookup))
    if sharp and sharpness >= 4096.0 and holders.any(-1).all():
        value = np.repeat(problem.value.astype(np.float64), problem.group, axis=1)
        mean = holders @ value / holders.sum(-1, keepdims=True)
        assert_within_bound(output, mean, what="looked-up value")


@law(
    "If all values are the same number, that number comes out, however many keys there are.",
    source="weights sum to one",
    problem=problems(values="ones", without=("sinks",)),
)
def test_constant_values_are_returned(run, problem):
    assert_within_bound(run(problem), np.where(problem.some_visible[..., None], 1.0, run.exact(problem)))


def _stacked(features, shape):
    """(B,H,Q,E) of (B,H,Q) for each feature, of which there may be none."""
    return np.stack(features, -1) if features else np.empty((*shape, 0))


@law(
    "An output never leaves the range of the values that it may see.",
    source="a weighted mean",
    problem=problems(),
)
def test_output_stays_in_hull_of_visible_values(run, problem):
    value = np.repeat(problem.value.astype(np.float64), problem.group, axis=1)
    visible, rows = problem.visible, problem.some_visible
    # Feature by feature: all at once are as many numbers as scores times features, gigabytes of a long sequence.
    low, high = (
        _stacked(
            [extreme(np.where(visible, x[:, :, None], other), -1) for x in np.moveaxis(value, -1, 0)],
            rows.shape,
        )
        for extreme, other in ((np.min, np.inf), (np.max, -np.inf))
    )
    if problem.sinks is not None:  # a sink is one more value of zero
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    output = run(problem)[rows]
    assert_at_least(output, low[rows], what="output")
    assert_at_most(output, high[rows], what="output")


@law(
    "Attention is linear in the values: doubling them doubles the output.",
    source="output = weights @ values",
    problem=problems(tame=True),
    factor=(2.0, -1.0, 0.5, -4.0),
)
def test_linear_in_values(run, problem, factor):
    larger = problem.replace(value=scaled(problem.value, factor))
    assert_within_bound(run(larger), run(problem) * factor)


@law(
    "The order of the keys does not matter, as long as the values follow.",
    source="a sum over keys",
    problem=problems(only=PERMUTABLE),
    seed=range(100),
)
def test_key_value_permutation_invariance(run, problem, seed):
    order = np.random.default_rng(seed).permutation(problem.sizes["K"])
    permuted = problem.replace(key=problem.key[:, :, order], value=problem.value[:, :, order])
    assert_within_bound(run(permuted), run(problem))


@law(
    "Reordering the queries reorders the outputs.",
    source="each query is answered on its own",
    problem=problems(only=(*PERMUTABLE, "key_lengths")),
    seed=range(100),
)
def test_query_permutation_equivariance(run, problem, seed):
    order = np.random.default_rng(seed).permutation(problem.sizes["Q"])
    assert_within_bound(run(problem.replace(query=problem.query[:, :, order])), run(problem)[:, :, order])


def entry(problem, b):
    """One batch entry on its own."""
    changes = {name: getattr(problem, name)[b : b + 1] for name in ("query", "key", "value")}
    for name in ("mask", "bias"):
        array = getattr(problem, name)
        if array is not None and array.ndim == 4 and array.shape[0] != 1:
            changes[name] = array[b : b + 1]
    if problem.key_lengths is not None:
        changes["key_lengths"] = problem.key_lengths[b : b + 1]
    return problem.replace(**changes, layouts={})


@law(
    "A batch entry gives the same alone as in its batch.",
    source="batch entries are independent",
    problem=problems(),
    b=range(3),
)
def test_batch_independence(run, problem, b):
    b %= problem.sizes["B"]
    assume(run.implementation.accepts({**problem.sizes, "B": 1}) is None)
    alone = entry(problem, b)
    assert_within_bound(run(alone), run(problem)[b : b + 1])
    if run.semantics["batch_invariant"] == "yes" and not problem.layouts:
        assert_identical(
            run.values(alone),
            run.values(problem)[b : b + 1],
            what="bits of a declared batch-invariant output",
        )


@law(
    "A key that appears twice counts as two keys with the same value.",
    source="softmax of equal scores",
    problem=problems(only=("scale", "softcap"), long=False),
)
def test_duplicated_keys_split_weight(run, problem):
    assume(run.implementation.accepts({**problem.sizes, "K": 2 * problem.sizes["K"]}) is None)
    twice = {name: np.concatenate([getattr(problem, name)] * 2, axis=2) for name in ("key", "value")}
    assert_within_bound(run(problem.replace(**twice, layouts={})), run(problem))


@law(
    "With scale zero every visible key counts the same: the output is their mean.",
    source="softmax of equal scores",
    needs="scale",
    problem=problems(only=("scale", "causal", "mask", "window", "key_lengths")),
)
def test_zero_scale_averages(run, problem):
    flat = problem.replace(scale=0.0)
    value = np.repeat(problem.value.astype(np.float64), problem.group, axis=1)
    count = flat.visible.sum(-1, keepdims=True)
    mean = np.where(count > 0, flat.visible @ value / np.maximum(count, 1), run.exact(flat))
    assert_within_bound(run(flat), Bounded(mean, run.oracle(flat).errors, EXACT))


@law("A negative scale turns the order of the keys around: attention(q, scale -s) = attention(-q, scale s).", source="q . k is bilinear", needs="scale",
     problem=problems(without=("scale",), tame=True), scale=(1.0, 0.25))  # fmt: skip
def test_negative_scale_is_negated_queries(run, problem, scale):
    assert_within_bound(
        run(problem.replace(scale=-scale)), run(problem.replace(query=-problem.query, scale=scale))
    )


@law("Scaling the queries is scaling the scores: attention(c q, scale s) = attention(q, scale c s).", source="q . k is bilinear", needs="scale",
     problem=problems(without=("scale",), tame=True), factor=(2.0, 0.5, 4.0), scale=(1.0, 0.25, 0.3))  # fmt: skip
def test_scale_covariance(run, problem, factor, scale):
    larger = problem.replace(query=scaled(problem.query, factor), scale=scale)
    assert_within_bound(run(larger), run(problem.replace(scale=factor * scale)))


@law(
    "The scale is 1 / sqrt(d) unless it is given: passing that number changes nothing.",
    source="'Attention is all you need', section 3.2.1",
    needs="scale",
    problem=problems(without=("scale",)),
)
def test_default_scale_is_inverse_root_of_head_size(run, problem):
    assert_within_bound(run(problem.replace(scale=problem.sizes["D"] ** -0.5)), run(problem))


@law("Zeros appended to queries and keys change nothing at a given scale.", source="q . k gains zero terms", needs="scale", problem=problems(only=("scale", "causal"), long=False),
     extra=(1, 3, 8),
     when=lambda run: "ties the key size to the value size" if run.implementation.accepts({"D": 2, "E": 1}) else None)  # fmt: skip
def test_zero_padding_of_head_dim(run, problem, extra):
    s = problem.sizes
    assume(run.implementation.accepts({**s, "D": s["D"] + extra}) is None)
    wide = {
        name: np.concatenate(
            [x := getattr(problem, name), np.zeros((*x.shape[:-1], extra), x.dtype)], axis=-1
        )
        for name in ("query", "key")
    }
    scale = problem.scale if problem.scale is not None else s["D"] ** -0.5
    assert_within_bound(
        run(problem.replace(**wide, scale=scale, layouts={})), run(problem.replace(scale=scale))
    )


@law(
    "Queries may come from another sequence than keys and values, of any length and value size.",
    source="encoder-decoder attention",
    problem=problems(without=("causal", "window")),
)
def test_cross_attention(run, problem):
    assume(problem.sizes["Q"] != problem.sizes["K"])
    assert_within_bound(run(problem), run.exact(problem))


@law(
    "A cap that is far above every score is no cap.",
    source="c tanh(s / c) -> s",
    needs="softcap",
    problem=problems(without=("softcap",), tame=True),
    cap=(1e4, 7e4),  # past 65,504, the largest number of float16
)
def test_softcap_limits(run, problem, cap):
    capped = problem.replace(softcap=cap)
    assert_within_bound(run(capped), run.exact(capped))


@law("A cap c bounds the scores to [-c, c]: no weight is more than e^(2c) times another.", source="c tanh(s / c)", needs="softcap",
     problem=problems(values="identity", only=("softcap", "scale")), cap=(0.5, 1.0, 2.0))  # fmt: skip
def test_softcap_bounds_scores(run, problem, cap):
    weights = run(problem.replace(softcap=cap))
    ceiling = np.exp(2 * cap) / (problem.sizes["K"] - 1 + np.exp(2 * cap))
    assert_at_most(weights, np.full(weights.shape, ceiling), what="weight")


@law(
    "A bias adds to the scores: with queries of zero the weights are softmax(bias).",
    source="additive attention bias",
    needs="bias",
    problem=problems(values="identity", use=("bias",), only=("bias",)),
)
def test_bias_adds_to_scores(run, problem):
    silent = problem.replace(query=np.zeros_like(problem.query))
    assert_within_bound(run(silent), run.exact(silent), what="weight")


@law("The log-sum-exp is the logarithm of the sum of the exponentials of the scores, natural unless declared otherwise, and -inf on rows that see no key.", source="FlashAttention, algorithm 1", needs="return_lse",
     problem=problems(use=("return_lse",), extremes=True), level=(None, 100.0, -100.0))  # fmt: skip
def test_log_sum_exp_is_right(run, problem, level):
    if problem.sinks is not None and level is not None:
        problem = problem.replace(sinks=np.full_like(problem.sinks, level))
    lse, exact = run.lse(problem), run.lse_bound(problem).value
    empty = np.isneginf(exact)
    if run.semantics["empty_lse"] == "finite":  # a number that stands for -inf: lower than any score
        assert_at_most(lse.value[empty], HARDLY_A_SCORE, what="log-sum-exp of an empty row")
        lse, exact = lse[~empty], exact[~empty]
    assert_within_bound(lse, exact, what="log-sum-exp")


@law(
    "Asking for the log-sum-exp does not change the output.",
    source="an output that depends on an unrelated flag",
    needs="return_lse",
    problem=problems(),
)
def test_output_does_not_depend_on_return_lse(run, problem):
    assert_within_bound(run(problem.replace(return_lse=True)), run(problem))


@law("Attention over a split of the keys, merged by log-sum-exp, is attention over all of them.", source="FlashDecoding; ring attention", needs="return_lse",
     problem=problems(only=("scale", "softcap"), use=("return_lse",)), cut=range(1, 201))  # fmt: skip
def test_merge_of_key_splits(run, problem, cut):
    s = problem.sizes
    assume(s["K"] > 1)
    at = 1 + cut % (s["K"] - 1)
    assume(all(run.implementation.accepts({**s, "K": n}) is None for n in (at, s["K"] - at)))
    parts = [
        problem.replace(key=problem.key[:, :, a:b], value=problem.value[:, :, a:b], layouts={})
        for a, b in ((0, at), (at, s["K"]))
    ]
    natural = LN_2 if run.semantics["lse"] == "base2" else 1.0
    lse = [run.lse(part) * natural for part in parts]
    top = np.maximum(lse[0].value, lse[1].value)
    weight = [np.exp(x - top)[..., None] for x in lse]
    merged = (weight[0] * run(parts[0]) + weight[1] * run(parts[1])) / (weight[0] + weight[1])
    assert_within_bound(merged, run(problem))


@law("A sink is one more key whose value is zero.", source="attention sinks (Xiao et al. 2023); learned sinks per head", needs="sinks", problem=problems(use=("sinks",)),
     level=(0.0, 3.0, -100.0, 100.0, 20.0))  # fmt: skip
def test_sinks_take_weight_only(run, problem, level):
    sunk = problem.replace(sinks=np.full_like(problem.sinks, level))
    assert_within_bound(run(sunk), run.exact(sunk))


@law(
    "An infinite cap caps nothing, where it is taken as one.",
    source="c tanh(s / c) tends to s; computed as it is written it is NaN, which refuses infinity",
    needs="softcap",
    problem=problems(without=("softcap",), long=False),
)
def test_infinite_cap_is_none(run, problem):
    output = run.values(problem.replace(softcap=np.inf))
    seen = output[problem.some_visible]
    if seen.size and np.isnan(seen).all():
        raise UnsupportedCase("with an infinite softcap every number is NaN: it is not taken as no cap")
    assert_within_bound(run.within(output, run.bound(problem)[0]), run.exact(problem))


@law("Calls of the sizes that models have are right: heads of 64 and 128, several tiles of queries and keys, one query over a long cache.",
     source="the fast paths are taken here", problem=problems(usual=True, tame=True, only=("causal", "scale")), weight=0.4)  # fmt: skip
def test_usual_calls(run, problem):
    assert_within_bound(run(problem), run.exact(problem))


@law("The output is right on the queries, keys and values of a trained model: scores from -39 to 42, heads that read one key.",
     source="all-MiniLM-L6-v2, first layer, on a page of text: qkverify.problem.activations", problem=real_problems(), weight=0.4)  # fmt: skip
def test_agrees_with_reference_on_real_activations(run, problem):
    assert_within_bound(run(problem), run.exact(problem))


@law("Half precision is rounded to the nearest number, not cut off: the error of an output or a gradient does not lean toward zero.",
     source="bfloat16 made of float32 by dropping 16 bits", dtypes=("float16", "bfloat16"), seed=range(10000), weight=0.2)  # fmt: skip
def test_half_precision_is_rounded_to_nearest(run, seed):
    """In units of the last place, away from zero: cutting off loses half a unit in the mean, rounding nothing. A quarter is
    between the two; six standard errors over the rows, whose errors are their own, are left to chance. Each row counts with
    the larger half of its numbers: in the last place of one that is nearly zero, the roundings of all else are many units."""
    rng = np.random.default_rng(seed)
    sizes = next(
        (
            s
            for s in ({"D": 8, "E": 16}, {"D": 16, "E": 16}, {"D": 64, "E": 64}, {"D": 128, "E": 128})
            if run.implementation.accepts({"B": 2, "H": 2, "G": 2, "Q": 33, "K": 17, **s}) is None
        ),
        None,
    )
    assume(sizes is not None)
    shapes = {"query": (2, 2, 33, sizes["D"]), "key": (2, 2, 17, sizes["D"]), "value": (2, 2, 17, sizes["E"])}
    if run.offers("gradients"):
        shapes["upstream"] = (2, 2, 33, sizes["E"])
    problem = Problem(
        **{name: rng.standard_normal(shape).astype(run.numpy_dtype) for name, shape in shapes.items()}
    )
    pairs = {"output": (run.values(problem), run.exact(problem))}
    if run.offers("gradients"):
        exact = run.exact_gradients(problem)
        pairs |= {
            f"gradient of {name}": (got, exact[name]) for name, got in run.gradient_values(problem).items()
        }
    for what, (got, right) in pairs.items():
        _assert_rounded_to_nearest(what, got.astype(np.float64), right, FORMATS[run.dtype].unit)


def _assert_rounded_to_nearest(what, got, exact, unit):
    place = np.exp2(np.floor(np.log2(np.abs(exact)))) * 2 * unit
    large = np.abs(exact) >= np.median(np.abs(exact), axis=-1, keepdims=True)
    lean = ((got - exact) * np.sign(exact) / place).mean(-1, where=large).ravel()
    room = 0.25 + 6 * lean.std() / np.sqrt(lean.size)
    assert_true(
        abs(lean.mean()) <= room,
        f"the mean error of the {what} is {lean.mean():.3f} units in the last place; at most {room:.3f} is allowed",
    )
