"""Laws of the decoder layer: causality, and the memory as a set."""

from __future__ import annotations

import numpy as np

from qkverify.properties.layers.layer_calls import (
    Sizes,
    decoded,
    epsilons,
    first,
    layer_gradients,
    levels,
    offering,
    seeds,
    shuffled,
    sizes,
    tokens_of,
    weights_of,
)
from qkverify.reference.encoder_decoder_vjp import decoder_layer_vjp
from qkverify.runs.assertions import (
    assert_gradients,
    assert_within_bound,
)
from qkverify.verification.laws import law

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
    output, _ = decoded(run, s, x, memory, weights, **options)
    changed, _ = decoded(run, s, other, memory, weights, **options)
    assert_within_bound(changed[:, :past], output[:, :past])


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
    "The padding of the memory changes nothing.",
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
    output, exact = decoded(run, s, x, memory, weights, **options)
    other, _ = decoded(run, s, x, np.where(kept, memory, 30 - memory), weights, **options)
    assert_within_bound(output, exact)
    assert_within_bound(other, output)
