"""The layers around attention: what is normalised, what is added to what, who sees whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qkverify.implementations.mutants.correct import layers
from qkverify.implementations.mutants.correct.layers import decoder_layer, encoder_layer
from qkverify.implementations.mutants.correct.planting import mutant

FEED, ENCODER, DECODER = "feed_forward", "encoder_layer", "decoder_layer"
Array = np.ndarray
Weights = Mapping[str, Array]


@mutant("L001", operation=FEED, evidence="inferred")
def tokens_become_channels_by_a_reshape(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """For a convolution of width one, (B, L, M) is reshaped to (B, M, L) as it lies, and back."""
    channels = x.reshape(len(x), x.shape[2], x.shape[1])  # right: x.swapaxes(1, 2)
    hidden = np.maximum(w_1.T @ channels + b_1[:, None], 0)
    return (w_2.T @ hidden + b_2[:, None]).swapaxes(1, 2)


@mutant("L002", operation=FEED, evidence="inferred")
def relu_comes_before_the_bias(x: Array, w_1: Array, b_1: Array, w_2: Array, b_2: Array) -> Array:
    """The bias of the first map is added after the relu."""
    hidden = np.maximum(x @ w_1, 0) + b_1  # right: np.maximum(x @ w_1 + b_1, 0)
    return hidden @ w_2 + b_2


@mutant(
    "L003",
    operation=ENCODER,
    evidence="stated",
    threads="jadore801120/attention-is-all-you-need-pytorch#17 OpenNMT/OpenNMT-tf#6",
)
def statistics_run_over_the_tokens(x: Array, weights: Weights, *, heads: int, eps: float = 1e-5) -> Array:
    """Mean and variance are those of one feature over the sequence."""

    def norm(y: Array, eps: float) -> Array:
        axis = 1  # right: -1
        return (y - y.mean(axis, keepdims=True)) / np.sqrt(y.var(axis, keepdims=True) + y.dtype.type(eps))

    return encoder_layer(x, weights, heads=heads, eps=eps, norm=norm)


@mutant(
    "L004",
    operation=ENCODER,
    evidence="stated",
    threads="Qualcomm-AI-research/geometric-algebra-transformer#8",
)
def statistics_run_over_the_whole_sequence(
    x: Array, weights: Weights, *, heads: int, eps: float = 1e-5
) -> Array:
    """Mean and variance are those of all axes but the first."""

    def norm(y: Array, eps: float) -> Array:
        axes = (1, 2)  # right: -1
        return (y - y.mean(axes, keepdims=True)) / np.sqrt(y.var(axes, keepdims=True) + y.dtype.type(eps))

    return encoder_layer(x, weights, heads=heads, eps=eps, norm=norm)


@mutant("L005", operation=ENCODER, evidence="partly", threads="Kyubyong/transformer#40")
def statistics_run_over_the_batch(x: Array, weights: Weights, *, heads: int, eps: float = 1e-5) -> Array:
    """Mean and variance are those of one feature of one place over the batch."""

    def norm(y: Array, eps: float) -> Array:
        axis = 0  # right: -1
        return (y - y.mean(axis, keepdims=True)) / np.sqrt(y.var(axis, keepdims=True) + y.dtype.type(eps))

    return encoder_layer(x, weights, heads=heads, eps=eps, norm=norm)


@mutant(
    "L006",
    operation=ENCODER,
    evidence="stated",
    threads="tracel-ai/burn#2185 codertimo/BERT-pytorch#30 hyunwoongko/transformer#7",
)
def eps_is_outside_the_root(x: Array, weights: Weights, *, heads: int, eps: float = 1e-5) -> Array:
    """The deviation plus eps divides, instead of the root of the variance plus eps."""

    def norm(y: Array, eps: float) -> Array:
        deviation = np.sqrt(y.var(-1, keepdims=True)) + y.dtype.type(eps)  # right: np.sqrt(y.var() + eps)
        return (y - y.mean(-1, keepdims=True)) / deviation

    return encoder_layer(x, weights, heads=heads, eps=eps, norm=norm)


@mutant(
    "L007", operation=ENCODER, evidence="stated", threads="harvardnlp/annotated-transformer#119 LBANN/lbann#2024"
)  # fmt: skip
def variance_is_unbiased(x: Array, weights: Weights, *, heads: int, eps: float = 1e-5) -> Array:
    """The sum of squares is divided by the number of features less one, as torch.std does by default."""

    def norm(y: Array, eps: float) -> Array:
        fewer = max(y.shape[-1] - 1, 1)  # right: y.shape[-1]
        centred = y - y.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).sum(-1, keepdims=True) / fewer + y.dtype.type(eps))

    return encoder_layer(x, weights, heads=heads, eps=eps, norm=norm)


@mutant("L008", operation=ENCODER, evidence="inferred")
def mean_is_not_subtracted(x: Array, weights: Weights, *, heads: int, eps: float = 1e-5) -> Array:
    """A root mean square norm stands where a layer norm is meant."""

    def norm(y: Array, eps: float) -> Array:
        centred = y  # right: y - y.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + y.dtype.type(eps))

    return encoder_layer(x, weights, heads=heads, eps=eps, norm=norm)


@mutant("L009", operation=ENCODER, evidence="stated", threads="keras-team/keras-io#2144")
def branch_is_normalised_before_it_is_added(
    x: Array, weights: Weights, *, heads: int, eps: float = 1e-5
) -> Array:
    """The norm is applied to the sublayer's output and not to the sum."""

    def after(x: Array, branch: Array, normed: Callable[[Array], Array]) -> Array:
        return x + normed(branch)  # right: normed(x + branch)

    return encoder_layer(x, weights, heads=heads, eps=eps, after=after)


@mutant("L010", operation=ENCODER, evidence="stated", threads="kyegomez/BitNet#32")
def residual_is_the_branch_itself(
    x: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5
) -> Array:
    """The output of attention overwrites x before x is added: it is added to itself, and the input is lost."""

    def attend(y: Array, source: Array, weights: Weights, heads: int, seen: Array) -> Array:
        branch = layers.attend(y, source, weights, heads, seen)
        return branch + branch - x  # right: branch, to which stack adds x

    return encoder_layer(x, weights, heads=heads, norm_first=norm_first, eps=eps, attend=attend)


@mutant("L011", operation=ENCODER, evidence="stated", threads="strutive07/transformer-tensorflow2.0#14")
def second_residual_starts_at_the_input(
    x: Array, weights: Weights, *, heads: int, eps: float = 1e-5
) -> Array:
    """What goes around the feed-forward network is the layer's input instead of the first sublayer's output."""
    start = x

    def after(x: Array, branch: Array, normed: Callable[[Array], Array]) -> Array:
        return normed(start + branch)  # right: normed(x + branch)

    return encoder_layer(x, weights, heads=heads, eps=eps, after=after)


@mutant(
    "L012",
    operation=ENCODER,
    evidence="stated",
    threads="IBM/TabFormer#14 Exorust/TorchLeet#5 DaoyuanLi2816/Molecule-Generator#22",
)
def attention_runs_over_the_batch(x: Array, weights: Weights, *, heads: int, eps: float = 1e-5) -> Array:
    """batch_first is left at its default: sequences attend to each other, place by place."""
    turned = x.swapaxes(0, 1)  # right: x
    return encoder_layer(turned, weights, heads=heads, eps=eps).swapaxes(0, 1)


@mutant(
    "L013", operation=ENCODER, evidence="stated", threads="huggingface/transformers#42820 sgl-project/sglang#35434"
)  # fmt: skip
def encoder_is_causal(x: Array, weights: Weights, *, heads: int, eps: float = 1e-5) -> Array:
    """Tokens of an encoder see only those before them."""

    def before(y: Array, lengths: Array | None) -> Array:
        return np.tri(y.shape[1], dtype=bool)  # right: np.ones((y.shape[1],) * 2, dtype=bool)

    return encoder_layer(x, weights, heads=heads, eps=eps, before=before)


@mutant("L014", operation=ENCODER, evidence="stated", threads="DaoyuanLi2816/Molecule-Generator#22")
def padding_is_attended_to(
    x: Array, weights: Weights, *, heads: int, eps: float = 1e-5, key_lengths: Array | None = None
) -> Array:
    """The lengths are accepted, and no mask is made of them."""
    return encoder_layer(x, weights, heads=heads, eps=eps, key_lengths=None)  # right: key_lengths


@mutant("L015", operation=ENCODER, evidence="stated", threads="lucidrains/halonet-pytorch#6")
def padding_mask_is_inverted(
    x: Array, weights: Weights, *, heads: int, eps: float = 1e-5, key_lengths: Array | None = None
) -> Array:
    """True means "ignore" where "attend" is meant: only padding is attended to, where there is some."""

    def before(y: Array, lengths: Array | None) -> Array:
        seen = layers.before(y, lengths)
        return seen if lengths is None else ~seen  # right: seen

    return encoder_layer(x, weights, heads=heads, eps=eps, key_lengths=key_lengths, before=before)


@mutant(
    "L016",
    operation=DECODER,
    evidence="stated",
    threads="alex-matton/causal-transformer-decoder#1 LiamMaclean216/Pytorch-Transfomer#1",
)
def future_targets_are_seen(
    x: Array, memory: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5
) -> Array:
    """The decoder's self-attention has no causal mask."""
    past = np.ones((x.shape[1],) * 2, dtype=bool)  # right: np.tri(x.shape[1], dtype=bool)
    return decoder_layer(x, memory, weights, heads=heads, norm_first=norm_first, eps=eps, past=past)


@mutant("L017", operation=DECODER, evidence="stated", threads="keitakurita/Practical_NLP_in_PyTorch#1")
def cross_attention_reads_the_targets(
    x: Array, memory: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5
) -> Array:
    """Keys and values of the second attention come from the decoder itself, and the memory is not used."""

    def cross(y: Array, memory: Array, weights: Weights, heads: int, seen: Array, prefix: str) -> Array:
        return layers.attend(y, y, weights, heads, layers.before(y, None), prefix)  # right: y, memory

    return decoder_layer(x, memory, weights, heads=heads, norm_first=norm_first, eps=eps, cross=cross)


@mutant("L018", operation=DECODER, evidence="partly", threads="keras-team/keras-io#1046")
def causal_mask_hides_the_memory(
    x: Array, memory: Array, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5
) -> Array:
    """The causal mask of the targets is applied to the memory as well."""

    def cross(y: Array, memory: Array, weights: Weights, heads: int, seen: Array, prefix: str) -> Array:
        past = np.tri(y.shape[1], memory.shape[1], dtype=bool)  # right: seen
        return layers.attend(y, memory, weights, heads, past, prefix)

    return decoder_layer(x, memory, weights, heads=heads, norm_first=norm_first, eps=eps, cross=cross)


@mutant("L019", operation=DECODER, evidence="stated", threads="keras-team/keras-io#1046")
def memory_padding_is_attended_to(
    x: Array, memory: Array, weights: Weights, *, heads: int, eps: float = 1e-5, memory_lengths: Array | None = None
) -> Array:  # fmt: skip
    """The decoder is never told where the memory ends."""
    return decoder_layer(
        x, memory, weights, heads=heads, eps=eps, memory_lengths=None
    )  # right: memory_lengths
