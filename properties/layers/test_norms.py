"""Laws of layer norm and RMS norm: each token by itself, by its own deviation or root mean square."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.properties.layers.layer_calls import offering, shuffled, tokens_of
from qkverify.properties.layers.norm_calls import BOTH, drawn, gradients, normed, norms
from qkverify.runs.assertions import assert_gradients, assert_true, assert_within_bound
from qkverify.strategies.exact_changes import scaled, shifted
from qkverify.verification.laws import law

levels = (0, 3, 300, 1000)  # what all features have in common
sizes = (1.0, 2.0**-8, 2.0**-16, 2.0**8)  # of the numbers: an eps is seen where they are small


def moved(run, arrays, level, size):
    """With x of a size, beside a level."""
    x = arrays["x"] * run.numpy_dtype(size) + run.numpy_dtype(level)
    return {**arrays, "x": x.astype(run.numpy_dtype)}


@law(
    "Layer norm is (x - mean) / sqrt(variance + eps) * weight + bias, over the last axis.",
    source="Ba et al. 2016 (arXiv:1607.06450), equation 4",
    operation="layer_norm",
    **norms,
    level=levels,
    size=sizes,
)
def test_layer_norm_agrees_with_reference(run, shape, eps, axes, seed, level, size):
    assert_within_bound(*normed(run, moved(run, drawn(run, shape, axes, seed), level, size), eps))


@law(
    "RMS norm is x / sqrt(mean of x^2 + eps) * weight, over the last axis.",
    source="Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4",
    operation="rms_norm",
    **norms,
    level=levels,
    size=sizes,
)
def test_rms_norm_agrees_with_reference(run, shape, eps, axes, seed, level, size):
    assert_within_bound(*normed(run, moved(run, drawn(run, shape, axes, seed), level, size), eps))


@law(
    "A constant added to all features of a token changes nothing in its layer norm.",
    source="Ba et al. 2016, table 1: invariant to a shift of a training case; x - mean(x)",
    operation="layer_norm",
    **norms,
    constant=(1, -7, 40, 500),
)
def test_layer_norm_ignores_a_constant(run, shape, eps, axes, seed, constant):
    arrays = drawn(run, shape, axes, seed)
    x, above = shifted(arrays["x"], constant)
    straight, _ = normed(run, {**arrays, "x": x}, eps)
    other, _ = normed(run, {**arrays, "x": above}, eps)
    assert_within_bound(other, straight)


@law(
    "The layer norm of a token whose features are all alike is the bias.",
    source="its variance is zero: eps keeps it from 0 / 0",
    operation="layer_norm",
    **norms,
    level=(0, 1, -3, 0.1, 1000),
)
def test_layer_norm_of_equal_features_is_the_bias(run, shape, eps, axes, seed, level):
    arrays = drawn(run, shape, axes, seed)
    x = np.full_like(arrays["x"], level)
    output, _ = normed(run, {**arrays, "x": x}, eps)
    assert_within_bound(output, np.broadcast_to(arrays["bias"].astype(np.float64), x.shape))


@law(
    "The layer norm of numbers is numbers, however large their mean is beside their deviation.",
    source="E[x^2] - E[x]^2 falls below zero by rounding, and its root is NaN",
    operation="layer_norm",
    **norms,
    level=(1000, 300, 30, 4000),
    size=(2.0**-8, 1.0, 0.0),
)
def test_layer_norm_of_numbers_is_numbers(run, shape, eps, axes, seed, level, size):
    """Of numbers whose squares have a finite sum."""
    arrays = drawn(run, shape, axes, seed)
    least = min(run.precision.elementwise.huge, run.precision.output.huge)
    lower = min(level, 2.0 ** np.floor(np.log2((least / shape["M"]) ** 0.5 / 4)))
    given = moved(run, arrays, lower, size)
    output = run.call(*given.values(), shape=given["x"].shape, **run.given(eps=eps))
    assert_true(np.isfinite(output.astype(np.float64)), "every number is finite, and a result is not")


@law(
    "A norm of twice the numbers with four times the eps is the same, and so for every power of two.",
    source="Ba et al. 2016, table 1; Zhang and Sennrich 2019, section 4: invariant to the scale of the input",
    operation=BOTH,
    **norms,
    factor=(2.0, 4.0, 0.5, 2.0**-6),
    when=offering("eps"),
)
def test_norms_have_no_unit(run, shape, eps, axes, seed, factor):
    assume(eps is not None)
    arrays = drawn(run, shape, axes, seed)
    plain, _ = normed(run, arrays, eps)
    larger, _ = normed(run, {**arrays, "x": scaled(arrays["x"], factor)}, eps * factor**2)
    assert_within_bound(larger, plain)


@law(
    "A token has the same norm alone, and wherever it stands.",
    source="Ba et al. 2016, section 3: each training case by itself",
    operation=BOTH,
    **norms,
)
def test_norms_are_token_wise(run, shape, eps, axes, seed):
    arrays = drawn(run, shape, axes, seed)
    order, at = shuffled(shape["L"], seed), seed % shape["L"]
    together, _ = normed(run, arrays, eps)
    turned, _ = normed(run, {**arrays, "x": np.ascontiguousarray(arrays["x"][..., order, :])}, eps)
    assert_within_bound(turned, together[..., order, :])
    alone, _ = normed(run, {**arrays, "x": np.ascontiguousarray(arrays["x"][..., at : at + 1, :])}, eps)
    assert_within_bound(alone, together[..., at : at + 1, :])


@law(
    "A NaN in a token makes all of that token's norm NaN, and no other's.",
    source="a mean over the features; IEEE 754-2019, section 6.2: operations on a NaN give one",
    operation=BOTH,
    **norms,
)
def test_norms_pass_nan_on(run, shape, eps, axes, seed):
    arrays = drawn(run, shape, axes, seed)
    spoilt = arrays["x"].copy()
    rows = spoilt.reshape(-1, shape["M"])
    rows[seed % len(rows), seed % shape["M"]] = np.nan
    clean = ~np.isnan(spoilt).any(-1)
    got = run.call(spoilt, *list(arrays.values())[1:], shape=spoilt.shape, **run.given(eps=eps))
    assert_true(np.isnan(got[~clean].astype(np.float64)), "a token has a NaN, and its norm has numbers")
    right, exact = normed(run, arrays, eps)
    bounded = type(right)(np.asarray(got, np.float64), right.errors, right.precision)
    assert_within_bound(bounded[clean], exact[clean])


@law(
    "The gradients of a norm, in x and in its weights, are those of its formula by the chain rule.",
    source="dx = (d - mean(d) - y mean(d y)) / deviation with d = upstream weight; without mean(d) in RMS norm",
    operation=BOTH,
    needs="gradients",
    **norms,
    level=(0, 3, 100),
    size=(1.0, 2.0**-8),
)
def test_norm_gradients_agree_with_reference(run, shape, eps, axes, seed, level, size):
    arrays = moved(run, drawn(run, shape, axes, seed), level, size)
    upstream = tokens_of(run, *arrays["x"].shape, seed=seed, other=3)
    assert_gradients(run, *gradients(run, arrays, upstream, eps))
