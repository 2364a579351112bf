"""Laws of the gated feed-forward network with SiLU: each token by itself."""

from __future__ import annotations

import numpy as np

from qkverify.properties.layers.layer_calls import Sizes, numbers, seeds, shuffled, sizes, tokens_of
from qkverify.reference.gated import swiglu as reference_swiglu
from qkverify.runs import exact_gradients
from qkverify.runs.assertions import assert_gradients, assert_true, assert_within_bound
from qkverify.verification.laws import law

gated = {"operation": "swiglu", "shape": sizes(), "seed": seeds}


def drawn(run, s, seed, magnitude=1):
    """x and the weights, by the names of the operation's arguments; the gates are larger by so much."""
    filled = numbers(run, seed)
    gate = filled(s.width, s.F) * run.numpy_dtype(magnitude)
    x = tokens_of(run, s.B, s.L, s.width, seed=seed)
    return {"x": x, "w_gate": gate, "w_up": filled(s.width, s.F), "w_down": filled(s.F, s.width)}


def fed(run, arrays):
    """The network's result with its bound, and the exact one."""
    exact = reference_swiglu(*[run.bounded(array) for array in arrays.values()])
    return run.within(run.call(*arrays.values(), shape=arrays["x"].shape), exact), exact.value


@law(
    "SwiGLU is (silu(x W_gate) * (x W_up)) W_down, with silu(x) = x / (1 + exp(-x)), however large the gates are.",
    source="Shazeer 2020 (arXiv:2002.05202), equation 6",
    **gated,
    magnitude=(1, 8, 64, 512),
)
def test_swiglu_agrees_with_reference(run, shape, seed, magnitude):
    assert_within_bound(*fed(run, drawn(run, Sizes(**shape), seed, magnitude)))


@law(
    "A token has the same SwiGLU alone, and wherever it stands in its sequence.",
    source="'Attention is all you need', section 3.3: applied to each position separately and identically",
    **gated,
)
def test_swiglu_is_position_wise(run, shape, seed):
    s = Sizes(**shape)
    arrays, order, at = drawn(run, s, seed), shuffled(s.L, seed), seed % s.L
    together, _ = fed(run, arrays)
    for taken in (order, slice(at, at + 1)):
        other, _ = fed(run, {**arrays, "x": np.ascontiguousarray(arrays["x"][:, taken])})
        assert_within_bound(other, together[:, taken])


@law(
    "A NaN in a token makes that token's SwiGLU NaN, and no other's.",
    source="IEEE 754-2019, section 6.2: operations on a NaN give one",
    **gated,
)
def test_swiglu_passes_nan_on(run, shape, seed):
    s = Sizes(**shape)
    arrays = drawn(run, s, seed)
    spoilt, clean = arrays["x"].copy(), np.ones((s.B, s.L), bool)
    spoilt[seed % s.B, seed % s.L, seed % s.width] = np.nan
    clean[seed % s.B, seed % s.L] = False
    got = run.call(spoilt, *list(arrays.values())[1:], shape=spoilt.shape)
    assert_true(np.isnan(got[~clean].astype(np.float64)), "a token has a NaN, and its result has none")
    exact = reference_swiglu(*[run.bounded(array) for array in arrays.values()])
    assert_within_bound(run.within(got, exact)[clean], exact.value[clean])


@law(
    "The gradients of SwiGLU, in x and in each of its weights, are those of its formula by the chain rule.",
    source="silu'(x) = sigmoid(x) (1 + x (1 - sigmoid(x)))",
    needs="gradients",
    **gated,
    magnitude=(1, 8, 64),
)
def test_swiglu_gradients_agree_with_reference(run, shape, seed, magnitude):
    s = Sizes(**shape)
    arrays = drawn(run, s, seed, magnitude)
    upstream = tokens_of(run, *arrays["x"].shape, seed=seed, other=2)
    exact = exact_gradients.OF["swiglu"](run, upstream, *arrays.values())
    assert_gradients(run, run.call_gradients(arrays, upstream=upstream), exact)
