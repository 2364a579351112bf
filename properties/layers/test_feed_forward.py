"""Laws of the feed-forward network: each token by itself."""

from __future__ import annotations

import numpy as np

from qkverify.properties.layers.layer_calls import Sizes, seeds, shuffled, sizes, tokens_of, weights_of
from qkverify.reference.layers import feed_forward as reference_feed_forward
from qkverify.reference.layers_vjp import feed_forward_vjp
from qkverify.runs.assertions import (
    assert_gradients,
    assert_true,
    assert_within_bound,
)
from qkverify.verification.laws import law

ff = {"operation": "feed_forward", "shape": sizes(), "seed": seeds}


def fed(run, x, weights):
    """The network's result with its bound, and the exact one."""
    arrays = (x, *(weights[name] for name in ("w_1", "b_1", "w_2", "b_2")))
    exact = reference_feed_forward(*[run.bounded(array) for array in arrays])
    return run.within(run.call(*arrays, shape=x.shape), exact), exact.value


@law(
    "The feed-forward network is relu(x W_1 + b_1) W_2 + b_2.",
    source="'Attention is all you need', section 3.3",
    **ff,
)
def test_feed_forward_agrees_with_reference(run, shape, seed):
    s = Sizes(**shape)
    output, exact = fed(run, tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2))
    assert_within_bound(output, exact)


@law(
    "A token gives the same alone, and wherever it stands in its sequence.",
    source="'Attention is all you need', section 3.3: applied to each position separately and identically",
    **ff,
)
def test_feed_forward_is_position_wise(run, shape, seed):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    order, at = shuffled(s.L, seed), seed % s.L
    together, _ = fed(run, x, weights)
    assert_within_bound(fed(run, np.ascontiguousarray(x[:, order]), weights)[0], together[:, order])
    assert_within_bound(
        fed(run, np.ascontiguousarray(x[:, at : at + 1]), weights)[0], together[:, at : at + 1]
    )


@law(
    "The gradients of the feed-forward network are two products with the slope of relu between them, summed over all tokens.",
    source="the chain rule; relu' is 0 below zero and 1 above",
    needs="gradients",
    **ff,
)
def test_feed_forward_gradients_agree_with_reference(run, shape, seed):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    arrays = {"x": x, **{name: weights[name] for name in ("w_1", "b_1", "w_2", "b_2")}}
    upstream = tokens_of(run, *x.shape, seed=seed, other=2)
    given = [run.bounded(array, run.gradient_precision) for array in (*arrays.values(), upstream)]
    assert_gradients(run, run.call_gradients(arrays, upstream=upstream), feed_forward_vjp(*given))


@law(
    "A NaN in a token makes that token's output NaN, and no other's.",
    source="relu is a maximum, and IEEE 754-2019, section 9.6: the maximum of NaN and a number is NaN",
    **ff,
)
def test_feed_forward_passes_nan_on(run, shape, seed):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    spoilt = x.copy()
    spoilt[seed % s.B, seed % s.L, seed % s.width] = np.nan
    clean = np.ones((s.B, s.L), bool)
    clean[seed % s.B, seed % s.L] = False
    arrays = [weights[name] for name in ("w_1", "b_1", "w_2", "b_2")]
    got = run.call(spoilt, *arrays, shape=x.shape)
    assert_true(np.isnan(got[~clean].astype(np.float64)), "a token has a NaN, and its output has none")
    exact = reference_feed_forward(*[run.bounded(array) for array in (x, *arrays)])
    assert_within_bound(run.within(got, exact)[clean], exact.value[clean])
