"""What the laws of layers share: sizes, weights, and a layer called beside its reference.

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

from qkverify.problem.byte_strategies import EDGES, stretched
from qkverify.reference.encoder_decoder import decoder_layer as reference_decoder
from qkverify.reference.encoder_decoder import encoder_layer as reference_encoder
from qkverify.rounding import Bounded
from qkverify.strategies.layer_weights import layer_weights
from qkverify.strategies.operation_keywords import optional

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
    by_weights, by_output = (
        reference(*[bounded(run, x, precision) for x in (*arrays.values(), upstream)], heads=s.H, delta=delta, **given)
        for delta in ("weights", "output")
    )  # fmt: skip
    exact = {
        name: Bounded(x.value, np.maximum(x.errors, by_output[name].errors), precision)
        for name, x in by_weights.items()
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


epsilons = optional("eps", 1e-5, 1e-2, 1.0)  # a large one shows where it is added


first = optional("norm_first", False, True)


levels = (0, 3, 1000)  # what all features of all tokens have in common: a norm takes it away


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
