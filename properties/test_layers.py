"""The layers around attention: feed-forward, encoder, decoder, and the loss with smoothed labels.

    feed_forward(x, w_1, b_1, w_2, b_2)                            x (B,L,M) -> (B,L,M), F the inner size
    encoder_layer(x, weights, *, heads, norm_first, eps, key_lengths)
    decoder_layer(x, memory, weights, *, heads, norm_first, eps, memory_lengths)      memory (B,K,M)
    cross_entropy(scores, targets, *, smoothing)                   scores (N,C), targets (N) -> (N)

`weights` maps names to arrays, see `reference/encoder_decoder.py`. The sizes are pairwise different, because a wrong axis is
invisible where two of them agree; only the memory may be as long as the target, since some code tells the two attentions
apart by that. In two of three examples one size is large. A bound grows in each sublayer and is divided by a deviation in each norm, so a law about
the norms alone silences the sublayers (their last weights are zero), and finds there what a whole layer would hide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from hypothesis import assume

from qkverify.problem.byte_strategies import EDGES, stretched
from qkverify.reference.encoder_decoder import decoder_layer as reference_decoder
from qkverify.reference.encoder_decoder import encoder_layer as reference_encoder
from qkverify.reference.encoder_decoder_vjp import decoder_layer_vjp, encoder_layer_vjp
from qkverify.reference.layers import feed_forward as reference_feed_forward
from qkverify.reference.layers_vjp import feed_forward_vjp
from qkverify.reference.positions import positional_encoding
from qkverify.rounding import Bounded
from qkverify.runs import exact_losses
from qkverify.runs.assertions import (
    assert_at_most,
    assert_gradients,
    assert_identical,
    assert_true,
    assert_within_bound,
)
from qkverify.strategies.exact_changes import shifted
from qkverify.strategies.operation_cases import layer_weights
from qkverify.strategies.operation_keywords import optional
from qkverify.verification.laws import law

seeds = range(1000)


@dataclass(frozen=True)
class Sizes:
    """B batch, L tokens, K tokens of the memory, H heads of size D, F inner size; the width M is H D."""

    B: int
    L: int
    K: int
    H: int
    D: int
    F: int

    @property
    def width(self):
        return self.H * self.D

    @property
    def different(self):
        return len({self.B, self.K, self.width, self.F}) == 4 and self.L not in (self.B, self.width, self.F)


def sizes(tokens=(1, 2, 3, 4, 5, 7, 13), features=1):
    """What `Sizes` is made of, with at least so many features. Plain numbers: a replay file can hold them."""
    long = {
        "L": EDGES,
        "F": EDGES,
        "K": EDGES,
        "D": (8, 9, 15, 16, 17, 24, 31, 33, 64, 65),
        "B": EDGES,
        "H": (8, 12, 16, 17, 33),
    }
    return stretched(
        long, lambda drawn: Sizes(**drawn).different and features <= Sizes(**drawn).width,
        B=(1, 2, 3), L=tokens, K=(1, 2, 3, 5, 6, 11), H=(2, 1, 4, 3), D=(1, 2, 3, 4, 5), F=(1, 2, 3, 7, 9, 16),
    )  # fmt: skip


def numbers(run, seed):
    """A source of arrays in the dtype under test; seeds below 10 give small whole numbers."""
    rng = np.random.default_rng(seed)

    def filled(*shape):
        whole = seed < 10
        array = rng.integers(-2, 3, shape) if whole else rng.standard_normal(shape) / shape[0] ** 0.5
        return array.astype(run.numpy_dtype)

    return filled


def tokens_of(run, *shape, seed, other=0):
    """Embeddings of unit variance, or small whole numbers; `other` ones for another argument."""
    rng = np.random.default_rng([seed, other])
    return (rng.integers(-2, 3, shape) if seed < 10 else rng.standard_normal(shape)).astype(run.numpy_dtype)


def weights_of(run, s, seed, norms):
    """The weights of an encoder layer (two norms) or a decoder layer (three)."""
    filled = numbers(run, seed)
    return layer_weights(s.width, s.F, norms, filled, filled)


def rounded(run, number, precision=None):
    """A number that is no array: an implementation rounds it to its working precision, and so may a power of it."""
    precision = precision or run.precision
    return Bounded(number, abs(number) * precision.accumulate.unit, precision)


def bounded(run, argument, precision=None):
    """Arrays of the dtype under test as the reference takes them; integers stay as they are."""
    if isinstance(argument, Mapping):
        return {name: bounded(run, value, precision) for name, value in argument.items()}
    return argument if argument.dtype.kind == "i" else run.bounded(argument, precision)


def layer(run, reference, s, *arrays, **options):
    """The layer's result with its bound, and the exact one. What is not offered keeps its default in both."""
    meant = run.meant(**options)
    exact = reference(
        *[bounded(run, x) for x in arrays], heads=s.H, scale=rounded(run, s.D**-0.5),
        **{**meant, "eps": rounded(run, meant["eps"])},
    )  # fmt: skip
    got = run.call(*arrays, shape=arrays[0].shape, heads=s.H, **run.given(**options))
    return run.within(got, exact), exact.value


def encoded(run, s, x, weights, **options):
    return layer(run, reference_encoder, s, x, weights, **options)


def decoded(run, s, x, memory, weights, **options):
    return layer(run, reference_decoder, s, x, memory, weights, **options)


def layer_gradients(run, reference, s, arrays, seed, **options):
    """The layer's gradients by name, and the exact ones with their bounds: those of either way to rowsum(dP P)."""
    meant = run.meant(**options)
    upstream = tokens_of(run, *arrays["x"].shape, seed=seed, other=2)
    precision = run.gradient_precision.either_side(s.D**-0.5)
    numbers = {"scale": s.D**-0.5, "eps": meant["eps"]}
    given = {**meant, **{name: rounded(run, number, precision) for name, number in numbers.items()}}
    one, other = (
        reference(*[bounded(run, x, precision) for x in (*arrays.values(), upstream)], heads=s.H, delta=delta, **given)
        for delta in ("weights", "output")
    )  # fmt: skip
    exact = {
        name: Bounded(x.value, np.maximum(x.errors, other[name].errors), precision) for name, x in one.items()
    }
    return run.call_gradients(arrays, upstream=upstream, heads=s.H, **run.given(**options)), exact


def shuffled(length, seed):
    """An order of the tokens that is not theirs, if there are two."""
    return (
        np.roll(np.random.default_rng(seed).permutation(length), 1) if length > 2 else np.arange(length)[::-1]
    )


def offering(name):
    """Where a law speaks of a keyword that need not be there."""
    return lambda run: None if run.offers_parameter(name) else f"not offered: {name}"


# -- feed-forward ----------------------------------------------------------------------------------------------------

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
    found, exact = fed(run, tokens_of(run, s.B, s.L, s.width, seed=seed), weights_of(run, s, seed, 2))
    assert_within_bound(found, exact)


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
    assert_true(np.isnan(got[~clean].astype(np.float64)), "a NaN in a token has gone from its output")
    exact = reference_feed_forward(*[run.bounded(array) for array in (x, *arrays)])
    assert_within_bound(run.within(got, exact)[clean], exact.value[clean])


# -- encoder ---------------------------------------------------------------------------------------------------------

epsilons = optional("eps", 1e-5, 1e-2, 1.0)  # a large one shows where it is added
first = optional("norm_first", False, True)
levels = (0, 3, 1000)  # what all features of all tokens have in common: a norm takes it away
encoder = {
    "operation": "encoder_layer",
    "shape": sizes(),
    "eps": epsilons,
    "norm_first": first,
    "seed": seeds,
}


def silent(weights):
    """With sublayers that give zero: what is left are the residual path and the norms."""
    zeros = {name: np.zeros_like(weights[name]) for name in ("w_o", "w_2", "b_2")}
    return {**weights, **zeros}


def plain_norms(weights, *numbers_of_norms):
    """With gains of one and shifts of zero."""
    ones = {f"gain_{i}": np.ones_like(weights[f"gain_{i}"]) for i in numbers_of_norms}
    return {
        **weights,
        **ones,
        **{f"shift_{i}": np.zeros_like(weights[f"shift_{i}"]) for i in numbers_of_norms},
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
    "What stands in the padding changes nothing in the tokens, and these are right.",
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
    found, exact = encoded(run, s, x, weights, **options)
    other, _ = encoded(run, s, np.where(kept[..., None], x, 30 - x), weights, **options)
    assert_within_bound(found[kept], exact[kept])
    assert_within_bound(other[kept], found[kept])


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
    found, _ = encoded(run, s, x, weights, eps=eps, norm_first=False)
    eps = run.meant(eps=eps)["eps"]
    variance = x.astype(np.float64).var(-1)
    for _ in range(2):
        variance = variance / (variance + eps)
    assert_within_bound(found.sum(-1), 0.0, what="sum of the features of a token")
    assert_within_bound((found * found).sum(-1) / s.width, variance, what="variance of a token")
    assert_at_most((found * found).sum(-1) / s.width, 1.0, what="variance of a token")


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


# -- decoder ---------------------------------------------------------------------------------------------------------

decoder = {
    "operation": "decoder_layer",
    "shape": sizes(),
    "eps": epsilons,
    "norm_first": first,
    "seed": seeds,
}


def drawn(run, s, seed):
    """x, the memory and the weights of a decoder layer."""
    x = tokens_of(run, s.B, s.L, s.width, seed=seed)
    return x, tokens_of(run, s.B, s.K, s.width, seed=seed, other=1), weights_of(run, s, seed, 3)


@law(
    "A decoder layer is causal self-attention, attention to the memory and feed-forward, each with its residual path and norm.",
    source="'Attention is all you need', figure 1, section 3.2.3",
    **decoder,
    level=levels,
)
def test_decoder_agrees_with_reference(run, shape, eps, norm_first, seed, level):
    s = Sizes(**shape)
    x, memory, weights = drawn(run, s, seed)
    x += x.dtype.type(level)
    assert_within_bound(*decoded(run, s, x, memory, weights, eps=eps, norm_first=norm_first))


@law(
    "The gradients of a decoder layer, in its tokens, the memory and each of its weights, are those of its sublayers by the chain rule.",
    source="d norm = (d - mean(d) - y mean(d y)) / deviation (Ba et al. 2016); FlashAttention, appendix B.2",
    needs="gradients",
    weight=0.5,
    padded=(False, True),
    **decoder,
)
def test_decoder_gradients_agree_with_reference(run, shape, eps, norm_first, seed, padded):
    s = Sizes(**shape)
    arrays = dict(zip(("x", "memory", "weights"), drawn(run, s, seed), strict=True))
    lengths = np.random.default_rng(seed).integers(1, s.K + 1, s.B).astype(np.int32)
    options = {"eps": eps, "norm_first": norm_first} | ({"memory_lengths": lengths} if padded else {})
    assert_gradients(run, *layer_gradients(run, decoder_layer_vjp, s, arrays, seed, **options))


@law(
    "Changing later target tokens changes nothing earlier.",
    source="'Attention is all you need', section 3.2.3: the decoder is auto-regressive",
    **decoder,
)
def test_decoder_is_causal_end_to_end(run, shape, eps, norm_first, seed):
    s = Sizes(**shape)
    (x, memory, weights), past = drawn(run, s, seed), 1 + seed % s.L
    other = np.where(np.arange(s.L)[:, None] < past, x, 3 - x)
    options = {"eps": eps, "norm_first": norm_first}
    found, _ = decoded(run, s, x, memory, weights, **options)
    changed, _ = decoded(run, s, other, memory, weights, **options)
    assert_within_bound(changed[:, :past], found[:, :past])


@law(
    "The order of the memory does not matter.",
    source="attention to the memory is a weighted mean without positions and without a causal mask",
    **decoder,
)
def test_decoder_memory_permutation(run, shape, eps, norm_first, seed):
    s = Sizes(**shape)
    (x, memory, weights), order = drawn(run, s, seed), shuffled(s.K, seed)
    options = {"eps": eps, "norm_first": norm_first}
    straight, _ = decoded(run, s, x, memory, weights, **options)
    permuted, _ = decoded(run, s, x, np.ascontiguousarray(memory[:, order]), weights, **options)
    assert_within_bound(permuted, straight)


@law(
    "What stands in the padding of the memory changes nothing.",
    source="padded keys are masked, in the decoder as in the encoder",
    **decoder,
    when=offering("memory_lengths"),
)
def test_decoder_memory_padding_has_no_influence(run, shape, eps, norm_first, seed):
    s = Sizes(**shape)
    x, memory, weights = drawn(run, s, seed)
    lengths = np.random.default_rng(seed).integers(1, s.K + 1, s.B).astype(np.int32)
    kept = (np.arange(s.K) < lengths[:, None])[..., None]  # (B,K,1)
    options = {"memory_lengths": lengths, "eps": eps, "norm_first": norm_first}
    found, exact = decoded(run, s, x, memory, weights, **options)
    other, _ = decoded(run, s, x, np.where(kept, memory, 30 - memory), weights, **options)
    assert_within_bound(found, exact)
    assert_within_bound(other, found)


# -- the loss --------------------------------------------------------------------------------------------------------

loss = {
    "operation": "cross_entropy", "tokens": (1, 2, 3, 6, 17, *EDGES), "classes": (2, 4, 5, 11, *EDGES),
    "smoothing": optional("smoothing", 0.0, 0.1, 0.5, 1.0, 0.3), "magnitude": (1, 10, 100), "seed": seeds,
}  # fmt: skip


def scored(run, tokens, classes, magnitude, seed):
    """Scores (N,C) in the dtype under test, targets (N) and an upstream gradient (N)."""
    rng = np.random.default_rng(seed)
    scores = tokens_of(run, tokens, classes, seed=seed) * run.numpy_dtype(magnitude)
    upstream = tokens_of(run, tokens, seed=seed, other=1)
    return scores, rng.integers(0, classes, tokens), upstream


def losses(run, scores, targets, smoothing):
    """The losses (N) with their bound, and the exact ones."""
    exact = exact_losses.cross_entropy(run, scores, targets, smoothing=smoothing)
    got = run.call(scores, targets, shape=targets.shape, **run.given(smoothing=smoothing))
    return run.within(got, exact), exact.value


def gradient(run, scores, targets, upstream, smoothing):
    """The gradient of sum(upstream * losses) in the scores with its bound, and the exact one."""
    exact = exact_losses.gradient(run, upstream, scores, targets, smoothing=smoothing)
    options = run.given(smoothing=smoothing)
    got = run.call_gradients({"scores": scores}, targets, upstream=upstream, **options)
    return run.within(got["scores"], exact), exact.value


@law(
    "The loss is the cross entropy to a target of 1 - smoothing on its class, and smoothing / C on every class.",
    source="'Attention is all you need', section 5.4; Szegedy et al. 2016, section 7",
    **loss,
)
def test_label_smoothing_agrees_with_reference(run, tokens, classes, smoothing, magnitude, seed):
    scores, targets, _ = scored(run, tokens, classes, magnitude, seed)
    assert_within_bound(*losses(run, scores, targets, smoothing), what="loss")


@law(
    "The gradient of the loss in the scores is softmax - target.",
    source="d/ds_k of log sum exp(s) - sum_k t_k s_k, for a target that sums to one",
    needs="gradients",
    **loss,
)
def test_label_smoothing_gradient_is_softmax_minus_target(run, tokens, classes, smoothing, magnitude, seed):
    given = scored(run, tokens, classes, magnitude, seed)
    assert_within_bound(*gradient(run, *given, smoothing), what="gradient")


@law(
    "The gradient of each token sums to zero over the classes.",
    source="the softmax and the target both sum to one",
    needs="gradients",
    **loss,
)
def test_label_smoothing_gradient_sums_to_zero(run, tokens, classes, smoothing, magnitude, seed):
    found, _ = gradient(run, *scored(run, tokens, classes, magnitude, seed), smoothing)
    assert_within_bound(found.sum(-1), 0.0, what="sum of a gradient")


@law(
    "Without smoothing the loss is minus the logarithm of the target's probability.",
    source="cross entropy with a one-hot target",
    **{name: drawn for name, drawn in loss.items() if name != "smoothing"},
)
def test_smoothing_zero_is_plain_cross_entropy(run, tokens, classes, magnitude, seed):
    scores, targets, _ = scored(run, tokens, classes, magnitude, seed)
    wide = scores.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    plain = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(tokens), targets]
    assert_within_bound(losses(run, scores, targets, 0.0)[0], plain, what="loss")


@law(
    "A constant added to all scores of a token changes no loss, however large.",
    source="softmax is shift invariant",
    **loss,
    constant=(1, -7, 500, 2000),
)
def test_loss_ignores_a_constant(run, tokens, classes, smoothing, magnitude, seed, constant):
    """Added to scores of which every sum is a number of the dtype."""
    scores, targets, _ = scored(run, tokens, classes, magnitude, seed)
    scores, above = shifted(scores, constant)
    straight, _ = losses(run, scores, targets, smoothing)
    moved, _ = losses(run, above, targets, smoothing)
    assert_within_bound(moved, straight, what="loss")
