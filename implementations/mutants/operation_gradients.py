"""The backward pass of the operations beside attention, written by hand. The forward pass of these is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qkverify.implementations.mutants.correct.planting import mutant

WIDE: dict[str, Any] = {"arrays": "torch", "dtypes": ("float32", "float64"), "evidence": "inferred"}
Weights = Mapping[str, Tensor]


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, function: Callable[..., Tensor], gradients: Callable[..., Any], *arrays: Tensor
    ) -> Tensor:
        context.save_for_backward(*arrays)
        context.gradients = gradients
        return function(*arrays)

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Any, ...]:
        return (None, None, *context.gradients(upstream, *context.saved_tensors))


def own(function: Callable[..., Tensor], gradients: Callable[..., Any], *arrays: Tensor) -> Tensor:
    """function(*arrays), whose gradients are gradients(upstream, *arrays)."""
    result: Tensor = _Own.apply(function, gradients, *arrays)  # type: ignore[no-untyped-call]
    return result


@mutant("L040", operation="softmax", **WIDE)
def mean_of_the_upstream_is_not_weighted(scores: Tensor) -> Tensor:
    """The upstream gradient loses its plain mean instead of its mean under the probabilities."""

    def gradients(upstream: Tensor, scores: Tensor) -> tuple[Tensor]:
        weights = torch.softmax(scores, -1)
        mean = upstream.mean(-1, keepdim=True)  # right: (weights * upstream).sum(-1, keepdim=True)
        return (weights * (upstream - mean),)

    return own(lambda scores: torch.softmax(scores, -1), gradients, scores)


@mutant("L041", operation="softmax", arrays="torch", dtypes=("bfloat16",), evidence="inferred")
def mean_of_the_upstream_is_kept_in_bfloat16(scores: Tensor) -> Tensor:
    """The sum of the products of probabilities and upstream gradient is rounded before it is subtracted."""

    def gradients(upstream: Tensor, scores: Tensor) -> tuple[Tensor]:
        weights, wide = torch.softmax(scores.float(), -1), upstream.float()
        mean = (weights * wide).sum(-1, keepdim=True).bfloat16()  # right: without bfloat16()
        return ((weights * (wide - mean)).to(scores.dtype),)

    return own(lambda scores: torch.softmax(scores, -1), gradients, scores)


def turned(x: Tensor, angle: Tensor, layout: str) -> Tensor:
    """Each pair of x turned by its angle."""
    first, second = (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else x.chunk(2, -1)
    sine, cosine = angle.sin().to(x.dtype), angle.cos().to(x.dtype)
    parts = first * cosine - second * sine, first * sine + second * cosine
    return torch.stack(parts, -1).flatten(-2) if layout == "interleaved" else torch.cat(parts, -1)


def angles(positions: Tensor, dim: int) -> Tensor:
    return positions.double()[..., None] / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)


@mutant("L043", operation="rotary", **WIDE)
def gradient_is_turned_forward(x: Tensor, positions: Tensor, *, layout: str = "interleaved") -> Tensor:
    """The kernel is called again for the backward pass, with the same sines."""
    angle = angles(positions, x.shape[-1])

    def gradients(upstream: Tensor, x: Tensor) -> tuple[Tensor]:
        return (turned(upstream, angle, layout),)  # right: -angle

    return own(lambda x: turned(x, angle, layout), gradients, x)


def both(
    query: Tensor, key: Tensor, positions: Tensor, layout: str, pull: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Query and key turned; `pull` is (gradient of the turned key, angle, layout) -> gradient of the key."""
    angle = angles(positions[:, None], query.shape[-1])
    first = own(lambda x: turned(x, angle, layout), lambda g, x: (turned(g, -angle, layout),), query)
    second = own(lambda x: turned(x, angle, layout), lambda g, x: (pull(g, angle, layout),), key)
    return first, second


@mutant("L055", operation="rotary_pair", **WIDE)
def gradient_of_the_key_is_turned_forward(
    query: Tensor, key: Tensor, positions: Tensor, *, layout: str = "interleaved"
) -> tuple[Tensor, Tensor]:
    """The backward pass turns the query's gradient back and the key's once more."""
    return both(
        query, key, positions, layout, turned
    )  # right: lambda g, angle, layout: turned(g, -angle, layout)


@mutant("L056", operation="rotary_pair", **WIDE)
def gradients_are_turned_by_the_first_ones_positions(
    query: Tensor, key: Tensor, positions: Tensor, *, layout: str = "interleaved"
) -> tuple[Tensor, Tensor]:
    """The backward pass keeps the angles of the first batch entry for all."""

    def pull(upstream: Tensor, angle: Tensor, layout: str) -> Tensor:
        return turned(upstream, -angle[:1], layout)  # right: -angle

    return both(query, key, positions, layout, pull)


@mutant("L057", operation="rotary_pair", arrays="torch", dtypes=("float32", "float64"), evidence="partly",
        threads="huggingface/candle#3612")  # fmt: skip
def turned_key_has_no_gradient(
    query: Tensor, key: Tensor, positions: Tensor, *, layout: str = "interleaved"
) -> tuple[Tensor, Tensor]:
    """The fused rotation has no backward pass, and nothing says so: what lies before it learns nothing."""
    angle = angles(positions[:, None], query.shape[-1])
    return turned(query, angle, layout), turned(key.detach(), angle, layout)  # right: key


@mutant("L045", operation="embedding", **WIDE)
def last_place_of_a_word_wins(tokens: Tensor, table: Tensor, *, layout: str = "interleaved") -> Tensor:
    """Gradients are written to the rows of the table, and not added to them: of a word that stands twice one is lost."""
    tokens = tokens.long()  # bytes would be a mask

    def gradients(upstream: Tensor, table: Tensor) -> tuple[Tensor]:
        rows = torch.zeros_like(table)
        rows[tokens.flatten()] = upstream.flatten(0, 1)  # right: rows.index_add_(0, ...)
        return (rows,)

    angle = angles(torch.arange(tokens.shape[1]), table.shape[1])
    parts = angle.sin(), angle.cos()
    places = torch.stack(parts, -1).flatten(-2) if layout == "interleaved" else torch.cat(parts, -1)
    words = own(lambda table: table[tokens], gradients, table)
    return words * table.shape[1] ** 0.5 + places.to(table.dtype)


@mutant("L054", operation="embedding", arrays="torch", dtypes=("bfloat16",), evidence="stated",
        threads="tenstorrent/tt-metal#53386 apache/mxnet#17703")  # fmt: skip
def places_of_a_word_are_added_up_in_bfloat16(tokens: Tensor, table: Tensor) -> Tensor:
    """The row of the gradient is read, added to and written again for each place: from 256 on, ones are lost."""
    factor = table.shape[1] ** 0.5

    def gradients(upstream: Tensor, table: Tensor) -> tuple[Tensor]:
        rows = torch.zeros_like(table)  # right: in float32
        for word, of_place in zip(tokens.flatten().tolist(), upstream.flatten(0, 1) * factor, strict=True):
            rows[word] += of_place
        return (rows.to(table.dtype),)

    angle = angles(torch.arange(tokens.shape[1]), table.shape[1])
    places = torch.stack((angle.sin(), angle.cos()), -1).flatten(-2).to(table.dtype)
    return own(lambda table: table[tokens] * factor, gradients, table) + places


@mutant("L046", operation="feed_forward", **WIDE)
def slope_is_that_of_a_leaky_relu(x: Tensor, w_1: Tensor, b_1: Tensor, w_2: Tensor, b_2: Tensor) -> Tensor:
    """Forward a relu, backward one that leaks a hundredth below zero."""

    def gradients(upstream: Tensor, inner: Tensor) -> tuple[Tensor]:
        return (upstream * torch.where(inner > 0, 1.0, 0.01),)  # right: 0.0

    return own(torch.relu, gradients, x @ w_1 + b_1) @ w_2 + b_2


@mutant("L048", operation="multi_head_attention", **WIDE)
def last_weights_learn_from_the_first_sequence(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, *, heads: int, causal: bool = False
) -> Tensor:
    """The gradient of W_O sums over the tokens of the first batch entry alone."""

    def gradients(upstream: Tensor, joined: Tensor, w_o: Tensor) -> tuple[Tensor, Tensor]:
        return upstream @ w_o.T, joined[0].T @ upstream[0]  # right: summed over all entries

    query, key, value = ((x @ w).unflatten(-1, (heads, -1)).transpose(1, 2) for w in (w_q, w_k, w_v))
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return own(lambda joined, w_o: joined @ w_o, gradients, output.transpose(1, 2).flatten(2), w_o)


def attend(x: Tensor, source: Tensor, weights: Weights, heads: int, causal: bool, prefix: str = "") -> Tensor:
    w = [weights[prefix + name] for name in ("w_q", "w_k", "w_v")]
    sources = zip((x, source, source), w, strict=True)
    query, key, value = ((y @ matrix).unflatten(-1, (heads, -1)).transpose(1, 2) for y, matrix in sources)
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return output.transpose(1, 2).flatten(2) @ weights[prefix + "w_o"]


def feed(x: Tensor, weights: Weights) -> Tensor:
    return torch.relu(x @ weights["w_1"] + weights["b_1"]) @ weights["w_2"] + weights["b_2"]


@mutant("L049", operation="encoder_layer", **WIDE)
def deviation_has_no_gradient(x: Tensor, weights: Weights, *, heads: int, eps: float = 1e-5) -> Tensor:
    """The backward pass of the norm takes the deviation for a constant."""

    def norm(y: Tensor, number: int) -> Tensor:
        deviation = (y.var(-1, keepdim=True, unbiased=False) + eps).sqrt().detach()  # right: without detach()
        return (y - y.mean(-1, keepdim=True)) / deviation * weights[f"gain_{number}"] + weights[f"shift_{number}"]  # fmt: skip

    x = norm(x + attend(x, x, weights, heads, causal=False), 1)
    return norm(x + feed(x, weights), 2)


@mutant("L050", operation="decoder_layer", **WIDE)
def memory_gets_no_gradient(
    x: Tensor, memory: Tensor, weights: Weights, *, heads: int, eps: float = 1e-5
) -> Tensor:
    """Keys and values of the memory are kept for the next token, cut off from what they were computed from."""
    kept = memory.detach()  # right: memory

    def norm(y: Tensor, number: int) -> Tensor:
        return functional.layer_norm(y, y.shape[-1:], weights[f"gain_{number}"], weights[f"shift_{number}"], eps)  # fmt: skip

    x = norm(x + attend(x, x, weights, heads, causal=True), 1)
    x = norm(x + attend(x, kept, weights, heads, causal=False, prefix="cross_"), 2)
    return norm(x + feed(x, weights), 3)
