"""reference.encoder_layer, decoder_layer, feed_forward and cross_entropy against explicit loops, torch and differences.

Both sides round: they are compared within the sum of the bounds that the reference derives for itself in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from qkverify.reference import (
    cross_entropy,
    cross_entropy_vjp,
    decoder_layer,
    encoder_layer,
    feed_forward,
    layer_norm,
    rms_norm,
    smoothed,
    swiglu,
)
from qkverify.rounding import EXACT, Bounded

B, L, K, H, M, F = 2, 5, 7, 3, 6, 4
LENGTHS = np.array([3, 5], np.int32)
MEMORY = np.array([7, 2], np.int32)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def weights(norms: int) -> dict[str, Any]:
    """Of an encoder layer (two norms) or a decoder layer (three)."""
    by_name = {}
    for place, prefix in enumerate(("", "cross_")[: norms - 1]):
        by_name |= {f"{prefix}w_{name}": normal(M, M, seed=10 * place + i) for i, name in enumerate("qkvo")}
    by_name |= {"w_1": normal(M, F), "b_1": normal(F), "w_2": normal(F, M), "b_2": normal(M, seed=1)}
    for i in range(1, norms + 1):
        by_name |= {f"gain_{i}": normal(M, seed=20 + i), f"shift_{i}": normal(M, seed=30 + i)}
    return by_name


def bounded(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {name: bounded(value) for name, value in x.items()}
    return Bounded(x, 0.0, EXACT) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x


def check(got: Any, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """`got` is what the function of the reference gives, within its bound for each side."""
    exact = function(*[bounded(x) for x in arguments], **options)
    np.testing.assert_array_equal(exact.value, function(*arguments, **options))
    assert (np.abs(np.asarray(got) - exact.value) <= 2 * exact.errors).all()


# -- explicit loops ------------------------------------------------------------------------------------------


def fed(token: Any, w: Mapping[str, Any]) -> list[float]:
    hidden = [
        max(math.fsum(token[m] * w["w_1"][m, f] for m in range(M)) + w["b_1"][f], 0.0) for f in range(F)
    ]
    return [math.fsum(hidden[f] * w["w_2"][f, m] for f in range(F)) + w["b_2"][m] for m in range(M)]


def normed(token: Any, w: Mapping[str, Any], i: int, eps: float = 1e-5) -> list[float]:
    mean = math.fsum(token) / M
    variance = math.fsum((t - mean) ** 2 for t in token) / M
    factor = 1 / math.sqrt(variance + eps)
    return [(t - mean) * factor * w[f"gain_{i}"][m] + w[f"shift_{i}"][m] for m, t in enumerate(token)]


def attended(token: Any, visible: Any, w: Mapping[str, Any], prefix: str = "") -> Any:
    """One token's attention to the tokens that it sees, head by head, word by word."""
    w_q, w_k, w_v, w_o = (w[f"{prefix}w_{name}"] for name in "qkvo")
    heads = []
    for h in range(H):
        columns = slice(h * M // H, (h + 1) * M // H)
        query = token @ w_q[:, columns]
        scores = [math.fsum(query * (other @ w_k[:, columns])) / math.sqrt(M / H) for other in visible]
        shares = [math.exp(score) for score in scores]
        mixed = sum(share * (other @ w_v[:, columns]) for share, other in zip(shares, visible, strict=True))
        heads.append(mixed / math.fsum(shares))
    return np.concatenate(heads) @ w_o


def test_feed_forward_is_two_sums_and_a_relu_for_each_token() -> None:
    x, w = normal(B, L, M), weights(2)
    arrays = [w[name] for name in ("w_1", "b_1", "w_2", "b_2")]
    check([[fed(token, w) for token in sequence] for sequence in x], feed_forward, x, *arrays)
    assert (feed_forward(x, w["w_1"], np.full(F, -1e9), w["w_2"], w["b_2"]) == w["b_2"]).all()


def test_the_norm_uses_all_features_of_one_token() -> None:
    x, w = normal(B, L, M), weights(2)
    loops = [[normed(token, w, 1, eps=0.1) for token in sequence] for sequence in x]
    check(loops, layer_norm, x, w["gain_1"], w["shift_1"], eps=0.1)
    assert (layer_norm(np.full((1, 1, M), 3.0), w["gain_1"], w["shift_1"]) == w["shift_1"]).all()


def test_a_gated_network_is_two_sums_a_gate_and_a_third_for_each_token() -> None:
    x, gate, up, down = normal(B, L, M), 3 * normal(M, F), normal(M, F), normal(F, M)

    def opened(token: np.ndarray) -> np.ndarray:
        gates = [math.fsum(token * column) for column in gate.T]
        shares = [z / (1 + math.exp(-z)) for z in gates]
        hidden = [share * math.fsum(token * column) for share, column in zip(shares, up.T, strict=True)]
        return np.array([math.fsum(hidden * column) for column in down.T])

    check([[opened(token) for token in sequence] for sequence in x], swiglu, x, gate, up, down)
    assert swiglu(np.array([[[1e4]]]), -np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1))) == 0


def test_the_root_mean_square_is_that_of_all_features_of_one_token() -> None:
    x, w = normal(B, L, M), weights(2)
    loops = [
        [token / math.sqrt(math.fsum(token * token) / M + 0.1) * w["gain_1"] for token in row] for row in x
    ]
    check(loops, rms_norm, x, w["gain_1"], eps=0.1)
    assert (rms_norm(np.zeros((1, 1, M)), w["gain_1"]) == 0).all()


def test_an_encoder_layer_token_by_token() -> None:
    x, w = normal(B, L, M), weights(2)
    output = np.empty_like(x)
    for b, i in np.ndindex(B, L):
        y = normed(x[b, i] + attended(x[b, i], x[b, : LENGTHS[b]], w), w, 1)
        output[b, i] = normed(np.add(y, fed(y, w)), w, 2)
    check(output, encoder_layer, x, w, heads=H, key_lengths=LENGTHS)


def test_an_encoder_layer_with_the_norm_first_token_by_token() -> None:
    x, w = normal(B, L, M), weights(2)
    output = np.empty_like(x)
    for b, i in np.ndindex(B, L):
        every = np.array([normed(token, w, 1) for token in x[b]])
        y = x[b, i] + attended(every[i], every, w)
        output[b, i] = y + fed(normed(y, w, 2), w)
    check(output, encoder_layer, x, w, heads=H, norm_first=True)


def test_a_decoder_layer_token_by_token() -> None:
    x, memory, w = normal(B, L, M), normal(B, K, M), weights(3)
    output = np.empty_like(x)
    for b, i in np.ndindex(B, L):
        y = np.array(normed(x[b, i] + attended(x[b, i], x[b, : i + 1], w), w, 1))
        y = normed(y + attended(y, memory[b, : MEMORY[b]], w, "cross_"), w, 2)
        output[b, i] = normed(np.add(y, fed(y, w)), w, 3)
    check(output, decoder_layer, x, memory, w, heads=H, memory_lengths=MEMORY)


# -- torch ---------------------------------------------------------------------------------------------------


def parameters(layer: Any, w: Mapping[str, Any], norms: int) -> Any:
    """A layer of torch with our weights: transposed, in its own order; attention has no biases here."""
    torch = pytest.importorskip("torch", reason="needs torch")
    state = {name: torch.zeros_like(value) for name, value in layer.state_dict().items()}
    for name, prefix in (("self_attn", ""), ("multihead_attn", "cross_"))[: norms - 1]:
        state[f"{name}.in_proj_weight"] = torch.tensor(
            np.concatenate([w[f"{prefix}w_{k}"] for k in "qkv"], 1).T
        )
        state[f"{name}.out_proj.weight"] = torch.tensor(w[f"{prefix}w_o"].T)
    for i in (1, 2):
        state |= {
            f"linear{i}.weight": torch.tensor(w[f"w_{i}"].T),
            f"linear{i}.bias": torch.tensor(w[f"b_{i}"]),
        }
    for i in range(1, norms + 1):
        state |= {
            f"norm{i}.weight": torch.tensor(w[f"gain_{i}"]),
            f"norm{i}.bias": torch.tensor(w[f"shift_{i}"]),
        }
    layer.load_state_dict(state)
    return layer.train()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_the_layers_are_those_of_torch(norm_first: bool, eps: float) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    shared = {
        "dropout": 0.0,
        "layer_norm_eps": eps,
        "batch_first": True,
        "norm_first": norm_first,
        "dtype": torch.float64,
    }
    x, memory = normal(B, L, M), normal(B, K, M)
    ours = {"heads": H, "norm_first": norm_first, "eps": eps}

    encoder = parameters(torch.nn.TransformerEncoderLayer(M, H, F, **shared), weights(2), 2)
    padding = torch.from_numpy(np.arange(L) >= LENGTHS[:, None])
    got = encoder(torch.from_numpy(x), src_key_padding_mask=padding).detach()
    check(got, encoder_layer, x, weights(2), key_lengths=LENGTHS, **ours)

    decoder = parameters(torch.nn.TransformerDecoderLayer(M, H, F, **shared), weights(3), 3)
    future = torch.ones(L, L, dtype=torch.bool).triu(1)
    padding = torch.from_numpy(np.arange(K) >= MEMORY[:, None])
    got = decoder(
        torch.from_numpy(x), torch.from_numpy(memory), tgt_mask=future, memory_key_padding_mask=padding
    )
    check(got.detach(), decoder_layer, x, memory, weights(3), memory_lengths=MEMORY, **ours)


def test_the_fast_implementations_take_torchs_fast_path() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from qkverify.implementations import torch_layers

    x, memory = torch.from_numpy(normal(B, L, M)), torch.from_numpy(normal(B, K, M))
    w = {name: torch.from_numpy(value) for name, value in weights(3).items()}

    def kernels(function: Any, *arguments: Any, **options: Any) -> set[str]:
        with torch.autograd.profiler.profile() as profile:
            function(*arguments, heads=2, **options)
        return {event.name for event in profile.function_events}

    whole, attention = "aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention"
    for options in ({}, {"key_lengths": torch.from_numpy(LENGTHS)}):
        assert whole in kernels(torch_layers.fast_encoder_layer, x, w, **options)
        assert whole not in kernels(torch_layers.encoder_layer, x, w, **options)
    for norm_first in (False, True):
        assert attention in kernels(torch_layers.fast_decoder_layer, x, memory, w, norm_first=norm_first)
        assert attention not in kernels(torch_layers.decoder_layer, x, memory, w, norm_first=norm_first)


# -- the loss ------------------------------------------------------------------------------------------------

SMOOTHINGS = [0.0, 0.1, 1.0]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_loss_is_a_sum_over_classes(smoothing: float) -> None:
    scores, targets = normal(4, 5) * 3, np.array([0, 4, 2, 2])
    loops = []
    for row, target in zip(scores, targets, strict=True):
        total = math.fsum(math.exp(s) for s in row)
        shares = [smoothing / 5 + (1 - smoothing) * (c == target) for c in range(5)]
        loops.append(-math.fsum(t * math.log(math.exp(s) / total) for t, s in zip(shares, row, strict=True)))
    check(loops, cross_entropy, scores, targets, smoothing=smoothing)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_loss_and_its_gradient_are_those_of_torch(smoothing: float) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    scores, targets, upstream = normal(4, 5) * 3, np.array([0, 4, 2, 2]), normal(4)
    leaf = torch.from_numpy(scores).requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        leaf, torch.from_numpy(targets), label_smoothing=smoothing, reduction="none"
    )
    check(losses.detach(), cross_entropy, scores, targets, smoothing=smoothing)
    losses.backward(torch.from_numpy(upstream))
    check(leaf.grad, cross_entropy_vjp, scores, targets, upstream, smoothing=smoothing)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_gradient_of_the_loss_by_central_differences(smoothing: float) -> None:
    """(f(s + h) - f(s - h)) / 2h is off by h^2 / 6 times a third derivative, at most 1, and by f's rounding over h."""
    scores, targets, upstream, h = normal(4, 5), np.array([0, 4, 2, 2]), normal(4), 2.0**-12
    gradient = cross_entropy_vjp(scores, targets, upstream, smoothing=smoothing)
    rounding = cross_entropy(bounded(scores), targets, smoothing=smoothing).errors
    for c in range(5):
        step = h * (np.arange(5) == c)
        up, down = (
            cross_entropy(scores + sign * step, targets, smoothing=smoothing) * upstream for sign in (1, -1)
        )
        limit = np.abs(upstream) * (h * h / 6 + 2 * rounding / h)
        assert (np.abs((up - down) / (2 * h) - gradient[:, c]) <= limit).all()


def test_the_smoothed_target_is_a_distribution() -> None:
    target = smoothed(np.array([1, 0]), 4, 0.5)
    assert target.tolist() == [[0.125, 0.625, 0.125, 0.125], [0.625, 0.125, 0.125, 0.125]]
