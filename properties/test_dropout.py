"""Dropout of attention weights: each is dropped with probability p or scaled by 1 / (1 - p), in the gradient too.

With V = I the output is the weights, so one call shows which of them were dropped: nothing here needs to know the generator.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume

from qkverify.errors import UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.problem.byte_strategies import fields
from qkverify.reference.attention import weights as weights_of
from qkverify.reference.groups import per_key_head, per_query_head
from qkverify.reference.scores import factor, scores
from qkverify.rounding import Bounded
from qkverify.runs.assertions import assert_identical, assert_true, assert_within_bound
from qkverify.strategies.attention_problems import problems
from qkverify.verification.laws import law

ODDS = 1e-12  # how seldom a right generator is accused: the share of dropped weights is a random number
shares = (0.5, 0.1, 0.25, 0.9)
dropped = {
    "needs": "dropout",
    "problem": problems(values="identity", only=("scale", "causal"), tame=True, long=False),
    "share": shares,
}


def kept_factor(run, share, precision=None):
    """1 / (1 - p), which an implementation rounds once."""
    precision = precision or run.precision
    return Bounded(1 / (1 - share), np.asarray(2 * precision.accumulate.unit / (1 - share)), precision)


@law(
    "A weight is either dropped or scaled by 1 / (1 - p), nothing else.",
    source="Srivastava et al., Dropout (2014); inverted dropout",
    **dropped,
)
def test_dropout_drops_or_scales(run, problem, share):
    got = run.outputs(problem, dropout=share)[0]
    exact = run.bound(problem)[0]
    kept = Bounded(exact.value, exact.errors, run.precision) * kept_factor(run, share)
    wanted = +Bounded(np.where(got == 0, 0.0, kept.value), kept.errors, run.precision, 0.0)
    assert_within_bound(got, wanted, what="weight")


@law("Dropping nothing changes nothing.", source="p = 0", needs="dropout", problem=problems())
def test_dropout_of_zero_is_none(run, problem):
    got = run.outputs(problem, dropout=0.0)[0]
    assert_within_bound(run.within(got, run.bound(problem)[0]), run.exact(problem))


@law("As many weights are dropped as were asked for.", source="Hoeffding's inequality, one false alarm in 1e12", needs="dropout", share=shares, weight=0.2,
     problem=problems(values="identity", only=(), tame=True, layouts=False, sizes={"B": 2, "G": 3, "H": "G", "Q": 33, "K": 33}))  # fmt: skip
def test_dropout_drops_its_share(run, problem, share):
    got = run.outputs(problem, dropout=share)[0]
    counted = run.exact(problem) > run.bound(problem)[0].errors  # a weight that underflows is no sign
    n = int(counted.sum())
    dropped_share = float((got[counted] == 0).mean()) if n else share
    room = math.sqrt(math.log(2 / ODDS) / (2 * max(n, 1)))
    assert_true(
        abs(dropped_share - share) <= room,
        f"{dropped_share:.3f} of {n} weights were dropped; {share} was asked for, give or take {room:.3f}",
    )


rows = ((17, 17), (5, 65), (33, 33), (3, 130), (65, 17), (2, 257))  # Q, K
alike = fields(batch=(2,), heads=((2, 2), (4, 2), (3, 1), (1, 1)), rows=rows)


def masks(run, shape, calls=2):
    """Which weights are dropped where all are equal and each is as likely as not, as signs (calls,B,H,Q,K)."""
    batch, (heads, shared), (queries, keys) = shape["batch"], shape["heads"], shape["rows"]
    sizes = {"B": batch, "H": heads, "G": shared, "Q": queries, "K": keys, "D": keys, "E": keys}
    assume(run.implementation.accepts(sizes) is None)
    query, key = (
        np.zeros((batch, n, rows, keys), run.numpy_dtype) for n, rows in ((heads, queries), (shared, keys))
    )
    value = np.broadcast_to(np.eye(keys), key.shape).astype(run.numpy_dtype)
    problem = Problem(query=query, key=key, value=value)
    return np.stack([np.where(run.outputs(problem, dropout=0.5)[0] == 0, -1, 1) for _ in range(calls)])


@law("Every call, batch entry and head drops different weights.", source="a seed or an offset that stays the same, or is the same sum of different indices", needs="dropout",
     weight=0.2, shape=alike)  # fmt: skip
def test_dropout_masks_differ(run, shape):
    """Each with each: that two of n right masks of m weights agree has odds below n^2 2^-(m + 1)."""
    all_masks = masks(run, shape)
    calls, batch, heads = all_masks.shape[:3]
    each = all_masks.reshape(calls * batch * heads, -1)
    same = np.argwhere(np.triu(each @ each.T == each.shape[1], 1))
    if len(same):
        first, second = (np.unravel_index(i, (calls, batch, heads)) for i in same[0])
        words = (f"head {h} of entry {b} in call {c}" for c, b, h in (first, second))
        assert_true(False, f"the same weights were dropped twice: {' and '.join(words)}")


@law("Weights are dropped independently: however they are shifted, the masks of calls, entries, heads, rows and columns agree by chance only.",
     source="Hoeffding's inequality for all shifts, one false alarm in 1e12; random numbers of one tile used for the next", needs="dropout", weight=0.2, shape=alike)  # fmt: skip
def test_dropped_weights_do_not_repeat(run, shape):
    """Products of fair signs with those at a distance are fair signs again, and independent: their chains do not close.

    Their mean over n of them is past sqrt(2 log(2 / odds) / n) with odds at most, and one of N shifts with N times those.
    """
    all_masks = masks(run, shape)
    signs, counts = (_correlated(x) for x in (all_masks, np.ones_like(all_masks)))
    apart = counts > 0.5
    apart[(0,) * apart.ndim] = False  # a mask agrees with itself
    room = np.sqrt(2 * math.log(2 * counts.size / ODDS) / np.where(apart, counts, 1))
    beyond = np.where(apart, np.abs(signs) / np.where(apart, counts, 1) - room, -np.inf)
    at = np.unravel_index(beyond.argmax(), beyond.shape)
    if beyond[at] > 0:
        step = [int(i - n if i > n // 2 else i) for i, n in zip(at, counts.shape, strict=True)]
        words = ", ".join(f"{n} {word}" for n, word in zip(step, ("calls", "entries", "heads", "rows", "columns"), strict=True) if n)  # fmt: skip
        same = (1 + signs[at] / counts[at]) / 2
        assert_true(False, f"{same:.1%} of {counts[at]:.0f} weights that lie {words} apart were dropped or kept together, "
                    f"of independent ones {(1 + room[at]) / 2:.1%} at most")  # fmt: skip


def _correlated(x):
    """For every shift the sum of products with the shifted array, in the order of a Fourier transform: whole numbers."""
    room = tuple(2 * n for n in x.shape)
    transformed = np.fft.rfftn(x, room, axes=range(x.ndim))
    return np.rint(np.fft.irfftn(np.abs(transformed) ** 2, room, axes=range(x.ndim)))


@law("With p = 1 everything is dropped: the output is zero, and so are the gradients, or p = 1 is refused.", source="1 / (1 - p) of nothing is nothing", exact=True,
     needs="dropout", problem=problems(only=("scale", "causal"), tame=True, long=False, upstream=True), weight=0.4)  # fmt: skip
def test_dropout_of_one_is_zero(run, problem):
    try:
        output = run.outputs(problem, dropout=1.0)[0]
    except (ValueError, RuntimeError) as refusal:
        raise UnsupportedCase(f"p = 1 is refused: {refusal}") from refusal
    assert_identical(np.abs(output), np.zeros_like(output), what="output")
    if run.offers("gradients") and run.implementation.vjp is None:
        for name, gradient in run.output_and_gradients(problem, dropout=1.0)[1].items():
            assert_identical(np.abs(gradient), np.zeros_like(gradient), what=f"gradient of {name}")


@law("The gradients drop what the output dropped, and scale what it kept by 1 / (1 - p).", source="the chain rule through inverted dropout", needs=("dropout", "gradients"),
     problem=problems(values="identity", only=("scale", "causal"), tame=True, long=False, upstream=True), share=shares,
     between=(False, True))  # fmt: skip
def test_dropout_gradients_use_the_same_mask(run, problem, share, between):
    """Its own call's mask: half of the time another call comes between the two passes, as one layer after another does."""
    output, gradients = run.output_and_gradients(problem, problem if between else None, dropout=share)
    precision = run.gradient_precision.either_side(problem.scale or 1.0)
    query, key, value, upstream = (
        run.bounded(getattr(problem, name), precision) for name in ("query", "key", "value", "upstream")
    )
    options = {name: getattr(problem, name) for name in ("scale", "causal", "causal_alignment")}
    # A weight that is too small to be stored looks as if it had been dropped.
    exact = run.bound(problem)[0]
    scaled = Bounded(exact.value, exact.errors, run.precision) * kept_factor(run, share)
    stored = +Bounded(scaled.value, scaled.errors, run.precision, 0.0)
    unknown = (output == 0) & (stored.value <= stored.errors)
    kept = Bounded(output != 0, np.where(unknown, 1.0, 0.0), precision) * kept_factor(run, share, precision)
    weights = weights_of(scores(query, key, **options))
    d_weights = upstream @ np.swapaxes(per_query_head(value, query.shape[1]), -1, -2) * kept
    d_scores = (
        weights
        * (d_weights - np.sum(weights * d_weights, axis=-1, keepdims=True))
        * factor(query.shape[-1], problem.scale)
    )
    shared = key.shape[1]
    wanted = {
        "query": d_scores @ per_query_head(key, query.shape[1]),
        "key": per_key_head(d_scores, query, shared),
        "value": per_key_head(weights * kept, upstream, shared),
    }
    for name, gradient in wanted.items():
        assert_within_bound(
            run.within(gradients[name], +gradient), gradient.value, what=f"gradient of {name}"
        )


@law(
    "Without dropout nothing is dropped: the same call twice gives the same result.",
    source="dropout left on at inference",
    exact=True,
    needs="dropout",
    problem=problems(),
)
def test_dropout_is_off_unless_asked_for(run, problem):
    assert_identical(run.outputs(problem)[0] == 0, run.outputs(problem)[0] == 0)
