"""The reference's gradients of the operations beside attention: central differences, torch's autograd, and their own bounds.

A difference (f(x + h) - f(x - h)) / 2h is off by c h^2 + O(h^4), and by the rounding of f over h. With twice the step c h^2 is
four times as large, so that the distance of the two differences is three times the first one's error: the limit here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from qkverify import reference
from qkverify.rounding import EXACT, Bounded, Precision

B, L, K, H, M, F, WORDS = 2, 3, 4, 2, 4, 5, 6
STEP = 2.0**-10
LENGTHS = np.array([2, 3])
PLACES = np.array([-3.0, 0.0, 11.0])
TOKENS = np.array([[1, 1, 4], [0, 1, 1]])  # repeated words
HELD = np.array([2, 0])  # tokens in a cache with room for five
TABLE, FILLED = (
    np.array([[3, 0], [3, 2]]),
    np.array([4, 3]),
)  # page 3 is shared, page 1 nobody's, one row of page 2 unused


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def drawn(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


FEED = drawn(w_1=(M, F), b_1=(F,), w_2=(F, M), b_2=(M,))
HEADS = drawn(w_q=(M, M), w_k=(M, M), w_v=(M, M), w_o=(M, M))
CROSS = {f"cross_{name}": normal(M, M, seed=10 + i) for i, name in enumerate(HEADS)}
NORMS = drawn(**{f"{name}_{i}": (M,) for name in ("gain", "shift") for i in (1, 2, 3)})
TWO = {name: x for name, x in NORMS.items() if not name.endswith("3")}
X, MEMORY = normal(B, L, M, seed=20), normal(B, K, M, seed=21)

GATED = {"w_gate": normal(M, 5, seed=25), "w_up": normal(M, 5, seed=26), "w_down": normal(5, M, seed=27)}
MERGED = {
    "o_a": X,
    "lse_a": normal(B, L, seed=22),
    "o_b": normal(B, L, M, seed=23),
    "lse_b": normal(B, L, seed=24),
}

Case = tuple[Callable[..., Any], Callable[..., Any], dict[str, Any], dict[str, Any]]


def layered(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Those names as arguments, all others as the weights."""
    return lambda given, *rest, **options: function(
        *(given[name] for name in names), {n: x for n, x in given.items() if n not in names}, *rest, **options
    )


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda given, *rest, **options: function(*given.values(), *rest, **options)


def under(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **options: {name: function(*arguments, **options)}


def merged_in_one(given: dict[str, Any]) -> Any:
    """Output and log-sum-exp beside one another: (B,L,M+1)."""
    output, lse = reference.merged_attention(*given.values())
    return np.concatenate([output, lse[..., None]], axis=-1)


def merged_in_one_vjp(given: dict[str, Any], upstream: Any) -> dict[str, Any]:
    return reference.merged_attention_vjp(*given.values(), upstream[..., :-1], upstream[..., -1])


def cases() -> dict[str, Case]:
    """Operation and options -> the function, its gradients, the arguments by name, the options."""
    by_name: dict[str, Case] = {
        "softmax": (plain(reference.softmax), under("x", lambda g, u: reference.softmax_vjp(reference.softmax(g["x"]), u)),
                    {"x": X}, {}),
        "feed-forward": (plain(reference.feed_forward), plain(reference.feed_forward_vjp), {"x": X, **FEED}, {}),
        "norm": (plain(reference.layer_norm), plain(reference.layer_norm_vjp),
                 {"x": X, "gain": NORMS["gain_1"], "shift": NORMS["shift_1"]}, {"eps": 0.1}),
        "SwiGLU": (plain(reference.swiglu), plain(reference.swiglu_vjp), {"x": X, **GATED}, {}),
        "merged": (merged_in_one, merged_in_one_vjp, MERGED, {}),
        "RMS norm": (plain(reference.rms_norm), plain(reference.rms_norm_vjp), {"x": X, "gain": NORMS["gain_1"]}, {"eps": 0.1}),
        "embedding": (lambda g: reference.embedding(TOKENS, g["table"]),
                      under("table", lambda g, u: reference.embedding_vjp(TOKENS, WORDS, u)), {"table": normal(WORDS, M)}, {}),
        "context": (lambda g, **o: reference.multi_head_attention(*[g[n] for n in ("x", *HEADS)], context=g["context"], **o),
                    lambda g, u, **o: reference.multi_head_vjp(*[g[n] for n in ("x", *HEADS)], u, context=g["context"], **o),
                    {"x": X, **HEADS, "context": MEMORY}, {"heads": H}),
    }  # fmt: skip
    rows = drawn(query=(B, 2 * H, 2, 3), key=(B, H, 2, 3), value=(B, H, 2, 4))
    caches = {"key_cache": normal(B, H, 5, 3, seed=8), "value_cache": normal(B, H, 5, 4, seed=9)}
    pools = {"key_pages": normal(4, 2, H, 3, seed=8), "value_pages": normal(4, 2, H, 4, seed=9)}
    for options in ({}, {"softcap": 1.5, "window": (1, None), "sinks": normal(2 * H)}):
        more = " with options" if options else ""
        by_name[f"cached{more}"] = (
            lambda g, **o: reference.cached_attention(*g.values(), HELD, **o),
            lambda g, u, **o: reference.cached_vjp(*g.values(), HELD, u, **o), {**rows, **caches}, options)  # fmt: skip
        by_name[f"paged{more}"] = (
            lambda g, **o: reference.paged_attention(*g.values(), TABLE, FILLED, **o),
            lambda g, u, **o: reference.paged_vjp(*g.values(), TABLE, FILLED, u, **o),
            {"query": rows["query"], **pools}, options)  # fmt: skip
    for layout in ("interleaved", "half"):
        by_name[f"rotary {layout}"] = (
            lambda g, layout: reference.rotary(g["x"], PLACES, layout=layout),
            under("x", lambda g, u, layout: reference.rotary_vjp(PLACES, u, layout=layout)), {"x": X}, {"layout": layout},
        )  # fmt: skip
    for causal in (False, True):
        options = {"heads": H, "causal": causal}
        by_name[f"multi-head causal={causal}"] = (
            plain(reference.multi_head_attention), plain(reference.multi_head_vjp), {"x": X, **HEADS}, options)  # fmt: skip
    for norm_first in (False, True):
        options = {"heads": H, "eps": 0.1, "norm_first": norm_first}
        by_name[f"encoder norm_first={norm_first}"] = (
            layered(reference.encoder_layer, "x"), layered(reference.encoder_layer_vjp, "x"),
            {"x": X, **HEADS, **FEED, **TWO}, {**options, "key_lengths": LENGTHS})  # fmt: skip
        by_name[f"decoder norm_first={norm_first}"] = (
            layered(reference.decoder_layer, "x", "memory"), layered(reference.decoder_layer_vjp, "x", "memory"),
            {"x": X, "memory": MEMORY, **HEADS, **CROSS, **FEED, **NORMS}, {**options, "memory_lengths": LENGTHS})  # fmt: skip
    return by_name


CASES = cases()


def bounded(given: Mapping[str, Any]) -> dict[str, Bounded]:
    return {name: Bounded(x, 0.0, EXACT) for name, x in given.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_by_central_differences(case: str) -> None:
    function, gradients, given, options = CASES[case]
    upstream = normal(*function(given, **options).shape, seed=30)
    computed = gradients(given, upstream, **options)
    assert computed.keys() == given.keys()
    rounding = (np.abs(upstream) * function(bounded(given), **options).errors).sum()

    def slope(name: str, at: tuple[int, ...], step: float) -> float:
        ends = []
        for sign in (1, -1):
            moved = given[name].copy()
            moved[at] += sign * step
            ends.append((upstream * function({**given, name: moved}, **options)).sum())
        return float((ends[0] - ends[1]) / (2 * step))

    for name, gradient in computed.items():
        assert gradient.shape == given[name].shape
        for at in np.ndindex(gradient.shape):
            once, twice = (slope(name, at, step) for step in (STEP, 2 * STEP))
            assert abs(gradient[at] - once) <= abs(twice - once) + 4 * rounding / STEP, (name, at)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_carries_its_bound(case: str, dtype: str) -> None:
    """On Bounded arrays the code gives the same values; computed in a format they stay within its bound, which says something."""
    function, gradients, given, options = CASES[case]
    given = {name: x.astype(np.float32) for name, x in given.items()}
    upstream = normal(*function(given, **options).shape, seed=30).astype(np.float32)
    precision = Precision.plain(dtype)
    exact = gradients(
        {name: Bounded(x, 0.0, precision) for name, x in given.items()}, Bounded(upstream, 0.0, precision), **options
    )  # fmt: skip
    wide = gradients(
        {name: x.astype(np.float64) for name, x in given.items()}, upstream.astype(np.float64), **options
    )
    narrow = gradients(
        {name: x.astype(dtype) for name, x in given.items()}, upstream.astype(dtype), **options
    )
    for name, x in exact.items():
        np.testing.assert_array_equal(x.value, wide[name])
        assert (np.abs(narrow[name] - wide[name]) <= x.errors).all()
        assert dtype == "float32" or x.errors.max() < np.abs(wide[name]).max()


@pytest.mark.parametrize("delta", ["weights", "output"])
def test_both_ways_to_delta_give_one_gradient(delta: str) -> None:
    given, upstream = {"x": X, **HEADS}, normal(B, L, M, seed=30)
    exact = reference.multi_head_vjp(*bounded(given).values(), Bounded(upstream, 0.0, EXACT), heads=H)
    other = reference.multi_head_vjp(*given.values(), upstream, heads=H, delta=delta)
    for name, x in exact.items():
        assert (np.abs(other[name] - x.value) <= 2 * x.errors).all()


def test_the_slope_of_relu_is_open_where_the_sign_is() -> None:
    """Where rounding could turn the sign of a hidden number, and at zero, any slope between 0 and 1 is right."""
    slope = np.heaviside(Bounded([-1.0, 1.0, 1e-3, 0.0], [0.0, 0.0, 1e-2, 0.0]), 0.0)
    assert slope.value.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert slope.errors.tolist() == [0.0, 0.0, 1.0, 1.0]
