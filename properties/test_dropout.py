"""Dropout of attention weights: each is dropped with probability p or scaled by 1 / (1 - p), in the gradient too.

With V = I the output is the weights, so one call shows which of them were dropped: nothing here needs to know the generator.
"""

from __future__ import annotations

import math

import numpy as np

from qkverify.laws import law
from qkverify.reference.attention import weights as weights_of
from qkverify.reference.groups import per_key_head, per_query_head
from qkverify.reference.scores import factor, scores
from qkverify.rounding import Bounded
from qkverify.strategies import problems
from qkverify.verdict import assert_identical, assert_true, assert_within_bound

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
    found = float((got[counted] == 0).mean()) if n else share
    room = math.sqrt(math.log(2 / ODDS) / (2 * max(n, 1)))
    assert_true(
        abs(found - share) <= room,
        f"{found:.3f} of {n} weights were dropped, asked for {share}, within {room:.3f}",
    )


@law("Every call, batch entry and head drops other weights.", source="a seed or an offset that stays the same", needs="dropout", weight=0.2,
     problem=problems(values="identity", only=(), tame=True, layouts=False, sizes={"B": 2, "G": 2, "H": "G", "Q": 17, "K": 17}))  # fmt: skip
def test_dropout_masks_differ(run, problem):
    """Half of 289 weights: that two right masks agree has odds of 2^-289."""
    same = problem.replace(
        query=np.zeros_like(problem.query)
    )  # equal weights everywhere: only the masks differ
    one, two = (run.outputs(same, dropout=0.5)[0] == 0 for _ in range(2))
    assert_true((one != two).any(), "two calls dropped the same weights")
    assert_true((one[0] != one[1]).any(), "two batch entries dropped the same weights")
    assert_true((one[:, 0] != one[:, 1]).any(), "two heads dropped the same weights")


@law("The gradients drop what the output dropped, and scale what it kept by 1 / (1 - p).", source="the chain rule through inverted dropout", needs=("dropout", "gradients"),
     problem=problems(values="identity", only=("scale", "causal"), tame=True, long=False, upstream=True), share=shares)  # fmt: skip
def test_dropout_gradients_use_the_same_mask(run, problem, share):
    output, found = run.output_and_gradients(problem, dropout=share)
    precision = run.gradient_precision.either_side(problem.scale or 1.0)
    query, key, value, upstream = (
        run.bounded(getattr(problem, name), precision) for name in ("query", "key", "value", "upstream")
    )
    options = {name: getattr(problem, name) for name in ("scale", "causal", "causal_alignment")}
    kept = np.where(output == 0, 0.0, 1.0) * kept_factor(run, share, precision)
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
    for name, exact in wanted.items():
        assert_within_bound(run.within(found[name], +exact), exact.value, what=f"gradient of {name}")


@law(
    "Whoever does not ask for dropout gets none: the same call twice is the same.",
    source="dropout left on at inference",
    exact=True,
    needs="dropout",
    problem=problems(),
)
def test_dropout_is_off_unless_asked_for(run, problem):
    assert_identical(run.outputs(problem)[0] == 0, run.outputs(problem)[0] == 0)
