"""torch's own layers and loss, as a user calls them, with weights that are handed in.

A layer in evaluation mode and without gradients takes torch's fast path, one fused call, where the number of heads is even
and the norm comes last; in training mode it goes step by step. Both are verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from qkverify import UnsupportedCase, implementation

Weights = Mapping[str, Tensor]
DTYPES = ("float32", "float64")
DEVICES = ("cpu", "cuda")


@implementation(name="torch_feed_forward", dtypes=DTYPES, devices=DEVICES)
def feed_forward(x: Tensor, w_1: Tensor, b_1: Tensor, w_2: Tensor, b_2: Tensor) -> Tensor:
    """Two times torch.nn.functional.linear, which takes transposed weights, and a relu between: (B,L,M) -> (B,L,M)."""
    return functional.linear(functional.linear(x, w_1.T, b_1).relu(), w_2.T, b_2)


@lru_cache(maxsize=512)
def module(
    kind: type[nn.Module], width: int, heads: int, inner: int, norm_first: bool, eps: float, thread: int
) -> nn.Module:
    """A layer without weights of its own. `functional_call` puts the caller's into it for a while: each thread has its own."""
    return kind(
        width, heads, inner, dropout=0.0, layer_norm_eps=eps, batch_first=True, norm_first=norm_first, device="meta"
    )  # fmt: skip


def attention(weights: Weights, name: str, prefix: str = "") -> dict[str, Tensor]:
    """The parameters of the MultiheadAttention of this name: transposed, the first three in one, all biases zero."""
    w_q, w_k, w_v, w_o = (weights[prefix + w] for w in ("w_q", "w_k", "w_v", "w_o"))
    return {
        f"{name}.in_proj_weight": torch.cat([w_q, w_k, w_v], dim=1).T.contiguous(),
        f"{name}.in_proj_bias": w_q.new_zeros(3 * len(w_q)),
        f"{name}.out_proj.weight": w_o.T.contiguous(),
        f"{name}.out_proj.bias": w_o.new_zeros(len(w_o)),
    }


def others(weights: Weights, norms: int) -> dict[str, Tensor]:
    """The parameters of the two linear maps and of the norms."""
    return {
        **{f"linear{i}.weight": weights[f"w_{i}"].T.contiguous() for i in (1, 2)},
        **{f"linear{i}.bias": weights[f"b_{i}"] for i in (1, 2)},
        **{f"norm{i}.weight": weights[f"gain_{i}"] for i in range(1, norms + 1)},
        **{f"norm{i}.bias": weights[f"shift_{i}"] for i in range(1, norms + 1)},
    }


def padding(tokens: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Where the tokens (B,L,M) are padding: (B,L), True there."""
    return (
        None if lengths is None else torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
    )


def encode(
    x: Tensor, weights: Weights, heads: int, norm_first: bool, eps: float, key_lengths: Tensor | None, training: bool
) -> Tensor:  # fmt: skip
    """torch.nn.TransformerEncoderLayer."""
    layer = module(
        nn.TransformerEncoderLayer, x.shape[-1], heads, len(weights["b_1"]), norm_first, eps, get_ident()
    )
    parameters = {**attention(weights, "self_attn"), **others(weights, 2)}
    given = {"src_key_padding_mask": padding(x, key_lengths)}
    result: Tensor = functional_call(layer.train(training), parameters, (x,), given)
    return result


@implementation(name="torch_encoder", dtypes=DTYPES, devices=DEVICES)
def encoder_layer(
    x: Tensor, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5,
    key_lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """torch.nn.TransformerEncoderLayer, as in training: step by step. x (B,L,M) -> (B,L,M)."""
    return encode(x, weights, heads, norm_first, eps, key_lengths, training=True)


@implementation(name="torch_encoder_fast", dtypes=DTYPES, devices=DEVICES, differentiable=False)
def fast_encoder_layer(
    x: Tensor, weights: Weights, *, heads: int, eps: float = 1e-5, key_lengths: Tensor | None = None
) -> Tensor:
    """torch.nn.TransformerEncoderLayer, as in inference: one fused call. x (B,L,M) -> (B,L,M)."""
    if heads % 2:
        raise UnsupportedCase(f"{heads} heads: the fast path takes an even number of them")
    with torch.no_grad():
        return encode(x, weights, heads, False, eps, key_lengths, training=False)


def decode(
    x: Tensor, memory: Tensor, weights: Weights, heads: int, norm_first: bool, eps: float,
    memory_lengths: Tensor | None, training: bool,
) -> Tensor:  # fmt: skip
    """torch.nn.TransformerDecoderLayer with a causal mask."""
    layer = module(
        nn.TransformerDecoderLayer, x.shape[-1], heads, len(weights["b_1"]), norm_first, eps, get_ident()
    )
    cross = attention(weights, "multihead_attn", "cross_")
    parameters = {**attention(weights, "self_attn"), **cross, **others(weights, 3)}
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    given = {
        "tgt_mask": future,
        "tgt_is_causal": True,
        "memory_key_padding_mask": padding(memory, memory_lengths),
    }
    result: Tensor = functional_call(layer.train(training), parameters, (x, memory), given)
    return result


@implementation(name="torch_decoder", dtypes=DTYPES, devices=DEVICES)
def decoder_layer(
    x: Tensor, memory: Tensor, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5,
    memory_lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """torch.nn.TransformerDecoderLayer, as in training. x (B,L,M), memory (B,K,M) -> (B,L,M)."""
    return decode(x, memory, weights, heads, norm_first, eps, memory_lengths, training=True)


@implementation(name="torch_decoder_fast", dtypes=DTYPES, devices=DEVICES, differentiable=False)
def fast_decoder_layer(
    x: Tensor, memory: Tensor, weights: Weights, *, heads: int, norm_first: bool = False, eps: float = 1e-5,
    memory_lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """torch.nn.TransformerDecoderLayer, as in inference: its self-attention is one fused call. -> (B,L,M)."""
    if heads % 2:
        raise UnsupportedCase(f"{heads} heads: the fast path takes an even number of them")
    with torch.no_grad():
        return decode(x, memory, weights, heads, norm_first, eps, memory_lengths, training=False)


@implementation(name="torch_cross_entropy", dtypes=DTYPES, devices=DEVICES)
def cross_entropy(scores: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """torch.nn.functional.cross_entropy with smoothed labels, token by token: (N,C), (N) -> (N)."""
    return functional.cross_entropy(scores, targets, label_smoothing=smoothing, reduction="none")
