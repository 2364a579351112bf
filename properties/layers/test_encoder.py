"""Laws of the encoder layer: permutations, padding, the residual path, the norms."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from qkverify.properties.layers.layer_calls import (
    Sizes,
    encoded,
    epsilons,
    first,
    layer_gradients,
    levels,
    offering,
    plain_norms,
    seeds,
    shuffled,
    silent,
    sizes,
    tokens_of,
    weights_of,
)
from qkverify.reference.encoder_decoder_vjp import encoder_layer_vjp
from qkverify.reference.positions import positional_encoding
from qkverify.runs.assertions import (
    assert_at_most,
    assert_gradients,
    assert_identical,
    assert_true,
    assert_within_bound,
)
from qkverify.strategies.exact_changes import shifted
from qkverify.verification.laws import law

encoder = {
    "operation": "encoder_layer",
    "shape": sizes(),
    "eps": epsilons,
    "norm_first": first,
    "seed": seeds,
}


@law(
    "An encoder layer is self-attention and feed-forward, each with its residual path and its norm.",
    source="'Attention is all you need', figure 1, section 3.1",
    **encoder,
    level=levels,
)
def test_encoder_agrees_with_reference(run, shape, eps, norm_first, seed, level):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    x += x.dtype.type(level)
    assert_within_bound(*encoded(run, s, x, weights, eps=eps, norm_first=norm_first))


@law(
    "The gradients of an encoder layer, in its tokens and in each of its weights, are those of its sublayers by the chain rule.",
    source="d norm = (d - mean(d) - y mean(d y)) / deviation (Ba et al. 2016); FlashAttention, appendix B.2",
    needs="gradients",
    weight=0.5,
    padded=(False, True),
    **encoder,
)
def test_encoder_gradients_agree_with_reference(run, shape, eps, norm_first, seed, padded):
    s = Sizes(**shape)
    arrays = {
        "x": tokens_of(run, s.B, s.L, s.width, seed=seed),
        "weights": weights_of(run, s, seed, 2),
    }
    lengths = np.random.default_rng(seed).integers(1, s.L + 1, s.B).astype(np.int32)
    options = {"eps": eps, "norm_first": norm_first} | ({"key_lengths": lengths} if padded else {})
    assert_gradients(run, *layer_gradients(run, encoder_layer_vjp, s, arrays, seed, **options))


@law(
    "Without positions, reordering the tokens reorders the output likewise.",
    source="nothing in the layer knows where a token stands",
    **encoder,
)
def test_encoder_is_permutation_equivariant_without_positions(run, shape, eps, norm_first, seed):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    order, options = shuffled(s.L, seed), {"eps": eps, "norm_first": norm_first}
    straight, _ = encoded(run, s, x, weights, **options)
    permuted, _ = encoded(run, s, np.ascontiguousarray(x[:, order]), weights, **options)
    assert_within_bound(permuted, straight[:, order])


@law(
    "With a positional encoding, reordered tokens give another output.",
    source="'Attention is all you need', section 3.5: positions let the model use the order",
    operation="encoder_layer",
    shape=sizes(tokens=(2, 3, 4, 5, 7, 13), features=3),
    norm_first=first,
    seed=range(10, 1000),
)
def test_positions_break_it(run, shape, norm_first, seed):
    """Where the exact outputs are further apart than twice both bounds, the outputs are apart by more than both."""
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    places, order = (
        positional_encoding(s.L, s.width + s.width % 2)[:, : s.width].astype(x.dtype),
        shuffled(s.L, seed),
    )
    straight, exact = encoded(run, s, x + places, weights, norm_first=norm_first)
    permuted, turned = encoded(run, s, x[:, order] + places, weights, norm_first=norm_first)
    bound = straight.errors[:, order] + permuted.errors
    assume((np.abs(exact[:, order] - turned) > 2 * bound).any())
    apart = np.abs(straight.value[:, order] - permuted.value) > bound
    assert_true(apart.any(), "the order of the tokens changed nothing, although positions were added")


@law(
    "A sequence gives the same alone as in its batch.",
    source="batch entries are independent",
    **encoder,
    b=range(3),
)
def test_encoder_batch_independence(run, shape, eps, norm_first, seed, b):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    b, options = b % s.B, {"eps": eps, "norm_first": norm_first}
    together, _ = encoded(run, s, x, weights, **options)
    alone, _ = encoded(run, s, x[b : b + 1], weights, **options)
    assert_within_bound(alone, together[b : b + 1])


@law(
    "The padding does not change the tokens, and the tokens are right.",
    source="padded keys are masked",
    **encoder,
    when=offering("key_lengths"),
)
def test_encoder_padding_has_no_influence(run, shape, eps, norm_first, seed):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2)
    lengths = np.random.default_rng(seed).integers(1, s.L + 1, s.B).astype(np.int32)
    kept = np.arange(s.L) < lengths[:, None]  # (B,L)
    options = {"key_lengths": lengths, "eps": eps, "norm_first": norm_first}
    output, exact = encoded(run, s, x, weights, **options)
    other, _ = encoded(run, s, np.where(kept[..., None], x, 30 - x), weights, **options)
    assert_within_bound(output[kept], exact[kept])
    assert_within_bound(other[kept], output[kept])


@law(
    "With the norm first and sublayers that give zero, a layer gives back its input.",
    source="the residual path goes around every sublayer and every norm",
    operation="encoder_layer",
    exact=True,
    shape=sizes(),
    seed=seeds,
    when=lambda run: None if run.meant(norm_first=True)["norm_first"] else "its norms come last",
)
def test_residual_path_is_the_identity(run, shape, seed):
    s = Sizes(**shape)
    x, weights = tokens_of(run, s.B, s.L, s.width, seed=seed), silent(weights_of(run, s, seed, 2))
    got = run.call(x, weights, shape=x.shape, heads=s.H, **run.given(norm_first=True))
    assert_identical(got, x)


norms = {"operation": "encoder_layer", "shape": sizes(features=2), "eps": epsilons, "seed": seeds}


@law(
    "A normalised token has mean zero and the variance v / (v + eps).",
    source="'Layer normalization' (Ba et al. 2016), equation 4: all features of one token, biased variance",
    when=lambda run: "its norms come first" if run.meant(norm_first=False)["norm_first"] else None,
    **norms,
)
def test_output_is_normalised(run, shape, eps, seed):
    """Sublayers that give zero: the second norm meets what the first one left, whose variance is known."""
    s = Sizes(**shape)
    x = tokens_of(run, s.B, s.L, s.width, seed=seed)
    weights = plain_norms(silent(weights_of(run, s, seed, 2)), 1, 2)
    output, _ = encoded(run, s, x, weights, eps=eps, norm_first=False)
    eps = run.meant(eps=eps)["eps"]
    variance = x.astype(np.float64).var(-1)
    for _ in range(2):
        variance = variance / (variance + eps)
    assert_within_bound(output.sum(-1), 0.0, what="sum of the features of a token")
    assert_within_bound((output * output).sum(-1) / s.width, variance, what="variance of a token")
    assert_at_most((output * output).sum(-1) / s.width, 1.0, what="variance of a token")


@law(
    "A constant added to all features of a token disappears in the norm.",
    source="'Layer normalization' (Ba et al. 2016), table 1: invariant to a shift of the features",
    **norms,
    norm_first=first,
    constant=(1, -3, 40, 1000),
)
def test_norm_ignores_a_constant(run, shape, eps, seed, norm_first, constant):
    """Attention that gives zero, and sums that the dtype does not round. With the norm first the constant goes past it, along
    the residual path."""
    s = Sizes(**shape)
    x, above = shifted(tokens_of(run, s.B, s.L, s.width, seed=seed), constant)
    weights = weights_of(run, s, seed, 2)
    weights = {**weights, "w_o": np.zeros_like(weights["w_o"])}
    options = {"eps": eps, "norm_first": norm_first}
    straight, _ = encoded(run, s, x, weights, **options)
    moved, _ = encoded(run, s, above, weights, **options)
    past = constant if run.meant(norm_first=norm_first)["norm_first"] else 0
    assert_within_bound(moved - past, straight)
