"""reference.attention_vjp against central differences of attention word by word, taken with 50 digits.

With a step of 1e-18 the truncation error, h^2/6 times a third derivative of order 1, and the cancellation,
1e-50 / h, both stay below 1e-31: fifteen digits under the rounding error of float64. So the only error to be
bounded is that of the reference, and it is bounded as for the outputs (see reference_oracles.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf

from qkverify.reference import attention_vjp, scores, weights

from .reference_oracles import DIGITS, attention_by_words, growth, off

STEP = mpf(10) ** -18
B, H, G, Q, K, D, E = 2, 2, 1, 2, 3, 2, 2


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed + sum(shape)).normal(size=shape)


def some(*shape: int) -> Any:
    return np.random.default_rng(2).random(size=shape) < 0.7


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "causal": {"causal": True},
    "causal top-left": {"causal": True, "causal_alignment": "top-left"},
    "empty rows": {"key_lengths": np.array([0, 2])},
    "window": {"window": (1, 0)},
    "mask": {"mask": some(B, H, Q, K)},
    "scale": {"scale": 1.7},
    "softcap": {"softcap": 0.8},
    "bias": {"bias": numbers(B, H, Q, K)},
    "bias of each key": {"bias": numbers(K)},
    "bias of each head": {"bias": numbers(H, 1, 1)},
    "bias of each batch entry": {"bias": numbers(B, 1, Q, 1)},
    "bias of -inf": {"bias": np.where(some(Q, K), numbers(Q, K), -np.inf)},
    "alibi": {"alibi_slopes": numbers(H)},
    "sinks": {"sinks": numbers(H)},
    "sinks beside empty rows": {"sinks": numbers(H), "key_lengths": np.array([0, 2])},
    "everything": {
        "mask": some(B, 1, Q, K), "bias": numbers(H, Q, K), "causal": True, "window": (2, None), "scale": 0.9,
        "softcap": 1.3, "alibi_slopes": numbers(H), "key_lengths": np.array([3, 2]), "sinks": numbers(H),
    },
}  # fmt: skip


def problem(**sizes: int) -> dict[str, Any]:
    """query (B,H,Q,D), key (B,G,K,D), value (B,G,K,E)."""
    n = {"B": B, "H": H, "G": G, "Q": Q, "K": K, "D": D, "E": E, **sizes}
    shapes = {"query": "BHQD", "key": "BGKD", "value": "BGKE"}
    return {name: numbers(*(n[letter] for letter in letters)) for name, letters in shapes.items()}


def differences(arguments: dict[str, Any], name: str, upstream: Any, lse_upstream: Any) -> Any:
    """The gradient of sum(upstream * output) + sum(lse_upstream * lse) in one argument, as mpf."""

    def total(point: Any) -> Any:
        output, lse = attention_by_words(**{**arguments, name: point})
        of_lse = ((g, x) for g, x in zip(lse_upstream.flat, lse.flat, strict=True) if mp.isfinite(x))
        return mp.fdot(zip(upstream.flat, output.flat, strict=True)) + mp.fdot(of_lse)

    gradient = np.empty(arguments[name].shape, dtype=object)
    for index in np.ndindex(gradient.shape):
        if not np.isfinite(arguments[name][index]):
            gradient[index] = mpf(0)
            continue
        ahead, behind = (np.array(arguments[name], dtype=object) for _ in range(2))
        ahead[index], behind[index] = ahead[index] + STEP, behind[index] - STEP
        gradient[index] = (total(ahead) - total(behind)) / (2 * STEP)
    return gradient


def bounds(arguments: dict[str, Any], upstream: Any, lse_upstream: Any) -> dict[str, Any]:
    """The bound of each gradient: the formulas of the reference over absolute values, times the growth."""
    given = {name: x for name, x in arguments.items() if name not in ("value", "sinks")}
    sinks = arguments.get("sinks")
    p = weights(scores(**given), sinks=sinks)
    query, key, value, upstream = (
        np.abs(x) for x in (*(arguments[n] for n in ("query", "key", "value")), upstream)
    )
    shared, group = key.shape, query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, group, axis=1) for x in (key, value))
    d_p = upstream @ value.swapaxes(-1, -2)
    row = (p * d_p).sum(-1, keepdims=True) + np.abs(lse_upstream)[..., None]
    d_logits = p * (d_p + row)
    d_products = d_logits * abs(arguments.get("scale", D**-0.5)) * (2 if "softcap" in arguments else 1)
    majorants = {"query": d_products @ key}
    for name, rows, columns in (("key", d_products, query), ("value", p, upstream)):
        majorants[name] = (rows.swapaxes(-1, -2) @ columns).reshape(*shared[:2], group, shared[2], -1).sum(2)
    if (bias := arguments.get("bias")) is not None:
        aligned = (1,) * (4 - bias.ndim) + bias.shape
        axes = tuple(i for i, n in enumerate(aligned) if n == 1)
        majorants["bias"] = d_logits.sum(axes, keepdims=True).reshape(bias.shape)
    if sinks is not None:
        majorants["sinks"] = row[..., 0].sum((0, 2))
    return {name: growth(**arguments) * majorant for name, majorant in majorants.items()}


def check(arguments: dict[str, Any]) -> None:
    """Every gradient, with either form of delta, is within its bound of the central differences."""
    rows = arguments["query"].shape[:3]
    upstream, lse_upstream = numbers(*rows, arguments["value"].shape[-1], seed=5), numbers(*rows, seed=6)
    bound = bounds(arguments, upstream, lse_upstream)
    results = [
        attention_vjp(**arguments, upstream=upstream, lse_upstream=lse_upstream, delta=delta)
        for delta in ("weights", "output")
    ]
    with mp.workdps(DIGITS):
        for name in bound:
            exact = differences(arguments, name, upstream, lse_upstream)
            for got in results:
                assert got.keys() == bound.keys()
                assert got[name].shape == exact.shape
                assert off(got[name], exact, bound[name]) <= 1, name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients_are_the_slopes_of_the_words(options: dict[str, Any]) -> None:
    check(problem() | options)


@pytest.mark.parametrize(
    "sizes", [{"B": 1, "H": 4, "G": 2}, {"G": 2}, {"Q": 1, "K": 1}, {"D": 1, "E": 3}], ids=str
)
def test_gradients_of_every_size_are_the_slopes_of_the_words(sizes: dict[str, int]) -> None:
    check(problem(**sizes))


def test_rows_that_see_nothing_have_no_gradient() -> None:
    mask = np.array([True, False])[:, None]
    upstream = numbers(B, H, Q, E)
    for policy in ("zero", "nan", "uniform"):
        got = attention_vjp(**problem(), upstream=upstream, mask=mask, empty_rows=policy)
        assert (got["query"][:, :, 1] == 0).all()
        assert all(np.isfinite(gradient).all() for gradient in got.values())


def test_the_mean_of_the_values_gives_each_value_its_part() -> None:
    upstream = numbers(B, H, Q, E)
    got = attention_vjp(
        **problem(), upstream=upstream, mask=np.zeros((Q, K), dtype=bool), empty_rows="uniform"
    )
    parts = upstream.reshape(B, G, -1, E).sum(2)[:, :, None] / K
    limit = growth(**problem()) * np.abs(upstream).reshape(B, G, -1, E).sum(2)[:, :, None]
    assert (np.abs(got["value"] - parts) <= limit).all()
    assert not got["query"].any()
    assert not got["key"].any()


def test_a_row_whose_scores_a_lowest_number_absorbed_passes_gradients_on() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    upstream, mask = numbers(B, H, Q, E), np.array([True, False])[:, None]
    given = {name: torch.from_numpy(x).requires_grad_() for name, x in problem().items()}
    query, key, value = given.values()
    key, value = (x.repeat_interleave(H // G, dim=1) for x in (key, value))
    hidden = torch.from_numpy(np.where(mask, 0.0, np.finfo(np.float64).min))
    output = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5 + hidden, -1) @ value
    output.backward(torch.from_numpy(upstream))
    for delta in ("weights", "output"):
        got = attention_vjp(
            **problem(), upstream=upstream, mask=mask, empty_rows="uniform with gradients", delta=delta
        )
        assert got["query"][:, :, 1].all()
        for name, x in given.items():
            np.testing.assert_allclose(got[name], x.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_invisible_keys_get_exactly_nothing() -> None:
    lengths = np.array([1, 3])
    got = attention_vjp(**problem(), upstream=numbers(B, H, Q, E), key_lengths=lengths, bias=numbers(K))
    assert (got["key"][0, :, 1:] == 0).all()
    assert (got["value"][0, :, 1:] == 0).all()


@pytest.mark.parametrize("letter", "BHQKDE")
def test_gradients_of_empty_arrays_are_empty_or_zero(letter: str) -> None:
    n = {"B": B, "H": H, "G": G, "Q": Q, "K": K, "D": D, "E": E, letter: 0} | (
        {"G": 0} if letter == "H" else {}
    )
    shapes = {"query": "BHQD", "key": "BGKD", "value": "BGKE", "upstream": "BHQE", "sinks": "H"}
    arrays = {name: np.ones([n[x] for x in letters]) for name, letters in shapes.items()}
    got = attention_vjp(**arrays, causal=True, softcap=2.0)
    assert {name: g.shape for name, g in got.items()} == {
        n: arrays[n].shape for n in arrays if n != "upstream"
    }
    assert all(np.isfinite(gradient).all() for gradient in got.values())
