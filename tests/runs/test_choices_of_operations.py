"""What other operations choose where libraries differ, and what they do not name: found out, printed, and held to.

Right code of every such choice holds; the same code with a mistake in it is broken, whatever was found out about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase

from qkverify import probes
from qkverify.contract import DTYPES, Implementation, describe
from qkverify.errors import UnsupportedCase
from qkverify.probes import conventions
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, applicable, conventions_of, law_book, prepare

EXAMPLES = 10
Tensor = torch.Tensor


def implementation(function: Callable[..., Any], operation: str, **declared: Any) -> Implementation:
    """As a target of the command line: undeclared, called once, its dtypes those of its framework."""
    return probes.fitted(describe(function, operation=operation, **{"arrays": "torch", **declared}))


def broken(implementation: Implementation, dtype: str) -> list[str]:
    """The laws that an implementation breaks in a dtype."""
    cell, broken_laws = Cell(implementation, "cpu", dtype, implementation.name), []
    for law in applicable(law_book(), cell):
        run = prepare(cell)
        if law.unfit(run):
            continue
        try:
            law.check(run, max_examples=EXAMPLES, seed=1, database=None, phases=(Phase.generate,))
        except UnsupportedCase:
            continue
        except Exception:
            broken_laws.append(law.name)
    return broken_laws


def found_out(implementation: Implementation, dtype: str = "float32") -> dict[str, str]:
    return {
        name: choice.value
        for name, choice in conventions_of(Cell(implementation, "cpu", dtype, implementation.name)).items()
    }


# -- layouts ---------------------------------------------------------------------------------------------------------


def paired(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    a, b = (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else x.chunk(2, -1)
    return a, b


def joined(a: Tensor, b: Tensor, layout: str) -> Tensor:
    return torch.stack([a, b], -1).flatten(-2) if layout == "interleaved" else torch.cat([a, b], -1)


def waves(positions: Tensor, size: int, angles: torch.dtype, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    angle = positions.to(angles)[..., None] / base ** (torch.arange(0, size, 2).to(angles) / size)
    return angle.sin(), angle.cos()


def rotary(x: Tensor, positions: Tensor, *, layout: str, angles: torch.dtype = torch.float64,
           inside: torch.dtype | None = None, base: float = 10000.0) -> Tensor:  # fmt: skip
    """Angles in one dtype, the products in another: that of x if none is given."""
    dtype = inside or x.dtype
    sine, cosine = (wave.to(dtype) for wave in waves(positions, x.shape[-1], angles, base))
    a, b = paired(x.to(dtype), layout)
    return joined(a * cosine - b * sine, a * sine + b * cosine, layout).to(x.dtype)


def rotary_pair(query: Tensor, key: Tensor, positions: Tensor, *, layout: str) -> tuple[Tensor, Tensor]:
    turn = partial(rotary, positions=positions[:, None], layout=layout)
    return turn(query), turn(key)


def positional_encoding(length: int, dim: int, *, layout: str) -> Tensor:
    return joined(*waves(torch.arange(length), dim, torch.float64), layout).float()


def embedding(tokens: Tensor, table: Tensor, *, layout: str) -> Tensor:
    places = joined(*waves(torch.arange(tokens.shape[1]), table.shape[1], torch.float64), layout)
    return table[tokens.long()] * table.shape[1] ** 0.5 + places.to(table.dtype)


LAYOUTS: Mapping[str, tuple[Callable[..., Any], str]] = {
    "rotary": (rotary, "half"),
    "rotary_pair": (rotary_pair, "half"),
    "positional_encoding": (positional_encoding, "concatenated"),
    "embedding": (embedding, "concatenated"),
}
SIGNATURES: Mapping[str, Callable[[Callable[..., Any], str], Callable[..., Any]]] = {
    "rotary": lambda f, layout: lambda x, positions: f(x, positions, layout=layout),
    "rotary_pair": lambda f, layout: lambda query, key, positions: f(query, key, positions, layout=layout),
    "positional_encoding": lambda f, layout: lambda length, dim: f(length, dim, layout=layout),
    "embedding": lambda f, layout: lambda tokens, table: f(tokens, table, layout=layout),
}


def without_layout(operation: str, layout: str) -> Implementation:
    function, _ = LAYOUTS[operation]
    return implementation(SIGNATURES[operation](function, layout), operation)


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("operation", LAYOUTS)
def test_a_layout_that_is_not_a_parameter_is_found_out_and_held_to(operation: str, other: bool) -> None:
    layout = LAYOUTS[operation][1] if other else "interleaved"
    fitted = without_layout(operation, layout)
    assert found_out(fitted)["layout"] == layout
    assert not broken(fitted, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rotation_in_halves_holds_in_every_dtype(dtype: str) -> None:
    """As written by hand, sines, cosines and products in the dtype of x; and with float32 inside."""
    assert not broken(without_layout("rotary", "half"), dtype)
    wide = torch.float64 if dtype == "float64" else torch.float32
    turn = partial(rotary, layout="half", inside=wide)
    assert not broken(implementation(lambda x, positions: turn(x, positions), "rotary"), dtype)


def test_the_layout_of_a_call_that_leaves_it_out_is_that_of_the_function() -> None:
    def by_default(x: Tensor, positions: Tensor, *, layout: str = "half") -> Tensor:
        return rotary(x, positions, layout=layout)

    fitted = implementation(by_default, "rotary")
    assert found_out(fitted)["layout"] == "half"
    assert not broken(fitted, "float32")

    def usual(x: Tensor, positions: Tensor, *, layout: str = "interleaved") -> Tensor:
        return rotary(x, positions, layout=layout)

    assert "layout" not in found_out(implementation(usual, "rotary"))


def test_a_default_that_is_neither_layout_is_broken() -> None:
    def by_default(x: Tensor, positions: Tensor, *, layout: str = "") -> Tensor:
        return rotary(x, positions, layout=layout) if layout else x * 0

    assert "rotary_agrees_with_formula" in broken(implementation(by_default, "rotary"), "float32")


def test_a_layout_is_found_out_of_a_function_that_is_wrong_and_of_large_heads() -> None:
    wrong = implementation(lambda x, positions: rotary(x, positions, layout="half", base=5000.0), "rotary")
    assert found_out(wrong)["layout"] == "half"
    assert "rotary_agrees_with_formula" in broken(wrong, "float32")

    def large(x: Tensor, positions: Tensor) -> Tensor:
        if x.shape[-1] % 64:
            raise ValueError("the size must be a multiple of 64")
        return rotary(x, positions, layout="half")

    assert found_out(implementation(large, "rotary"))["layout"] == "half"


@pytest.mark.parametrize("operation", LAYOUTS)
def test_of_zeros_no_layout_is_found(operation: str) -> None:
    def zero(*arguments: Any, layout: str) -> Any:
        computed = LAYOUTS[operation][0](*arguments, layout="interleaved")
        return tuple(0 * x for x in computed) if isinstance(computed, tuple) else 0 * computed

    fitted = implementation(SIGNATURES[operation](zero, ""), operation)
    assert "layout" not in found_out(fitted)
    assert broken(fitted, "float32")


@pytest.mark.parametrize("missing", ["positions", "scale"])
def test_another_embedding_is_broken(missing: str) -> None:
    def other(tokens: Tensor, table: Tensor) -> Tensor:
        words = table[tokens.long()] * (1 if missing == "scale" else table.shape[1] ** 0.5)
        return words + (embedding(tokens, 0 * table, layout="interleaved") if missing == "scale" else 0)

    assert "embedding_agrees_with_formula" in broken(implementation(other, "embedding"), "float32")


# -- dtypes and rounding ---------------------------------------------------------------------------------------------


def test_an_encoding_without_dtype_is_verified_once_in_the_dtype_that_it_has() -> None:
    assert without_layout("positional_encoding", "interleaved").dtypes == ("float32",)

    def in_numpy(length: int, dim: int) -> np.ndarray:
        return positional_encoding(length, dim, layout="interleaved").double().numpy()

    fitted = implementation(in_numpy, "positional_encoding", arrays="numpy")
    assert fitted.dtypes == ("float64",)
    assert found_out(fitted, "float64") == {"layout": "interleaved", "angles": "float32"}

    def told(length: int, dim: int, *, dtype: str = "float32") -> Tensor:
        return positional_encoding(length, dim, layout="interleaved").to(getattr(torch, dtype))

    assert implementation(told, "positional_encoding").dtypes == DTYPES


def test_angles_in_float32_are_found_out_in_float64_and_nothing_less_is() -> None:
    def turn(angles: torch.dtype) -> Implementation:
        return implementation(
            lambda x, positions: rotary(x, positions, layout="half", angles=angles), "rotary"
        )

    assert found_out(turn(torch.float32), "float64")["angles"] == "float32"
    assert not broken(turn(torch.float32), "float64")
    assert "angles" not in found_out(turn(torch.float64), "float64")
    for coarse in (torch.float16, torch.bfloat16):
        assert "angles" not in found_out(turn(coarse), "float64")
        for dtype in ("float64", "float32", "bfloat16"):
            assert "rotary_agrees_with_formula" in broken(turn(coarse), dtype)


def loss(scores: Tensor, targets: Tensor, *, smoothing: float = 0.0, inside: torch.dtype | None = None,
         times: float = 1.0) -> Tensor:  # fmt: skip
    scores = scores.to(inside or scores.dtype)
    return times * torch.nn.functional.cross_entropy(
        scores, targets, label_smoothing=smoothing, reduction="none"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_loss_that_rounds_every_operation_is_found_out(dtype: str) -> None:
    def eager(scores: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return loss(scores, targets, smoothing=smoothing)

    def wide(scores: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return loss(scores, targets, smoothing=smoothing, inside=torch.float32).to(scores.dtype)

    def wrong(scores: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return loss(scores, targets, smoothing=smoothing, times=1.05)

    assert found_out(implementation(eager, "cross_entropy"), dtype)["precision"] == "eager"
    assert not broken(implementation(eager, "cross_entropy"), dtype)
    assert not found_out(implementation(wide, "cross_entropy"), dtype)
    assert not broken(implementation(wide, "cross_entropy"), dtype)
    assert not found_out(implementation(wrong, "cross_entropy"), dtype)  # neither: it is wrong
    assert "label_smoothing_agrees_with_reference" in broken(implementation(wrong, "cross_entropy"), dtype)


def test_targets_of_one_type_of_integers_are_enough() -> None:
    def narrow(scores: Tensor, targets: Tensor) -> Tensor:
        if targets.dtype != torch.int64:
            raise TypeError("targets must be int64")
        return loss(scores, targets)

    assert not broken(implementation(narrow, "cross_entropy"), "float32")


def test_bounds_that_say_nothing_are_no_excuse() -> None:
    """A layer whose bounds are infinite, where every operation rounds, counts as a fused kernel: zeros stay broken."""

    def zeros(x: Tensor, weights: Mapping[str, Tensor], *, heads: int) -> Tensor:
        return 0 * x

    fitted = implementation(zeros, "encoder_layer")
    assert "precision" not in found_out(fitted, "bfloat16")
    assert broken(fitted, "bfloat16")


# -- norms and heads -------------------------------------------------------------------------------------------------


def attend(y: Any, weights: Any, heads: int) -> Any:
    q, k, v = (
        (y @ weights[n]).reshape(*y.shape[:2], heads, -1).swapaxes(1, 2) for n in ("w_q", "w_k", "w_v")
    )
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    output = exponentials / exponentials.sum(-1, keepdims=True) @ v
    return output.swapaxes(1, 2).reshape(y.shape) @ weights["w_o"]


def encode(x: Any, weights: Any, heads: int, norm_first: bool, eps: float) -> Any:
    """In float64, rounded once."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(y: Any, i: int) -> Any:
        centred = y - y.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"gain_{i}"] + w[f"shift_{i}"]
        )

    y = x.astype(np.float64)
    sublayers = (
        lambda z: attend(z, w, heads),
        lambda z: np.maximum(z @ w["w_1"] + w["b_1"], 0) @ w["w_2"] + w["b_2"],
    )
    for i, sublayer in enumerate(sublayers, 1):
        y = y + sublayer(norm(y, i)) if norm_first else norm(y + sublayer(y), i)
    return y.astype(x.dtype)


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_where_norms_stand_and_what_is_added_is_found_out(norm_first: bool, eps: float, dtype: str) -> None:
    def encoder_layer(x: Any, weights: Any, *, heads: int) -> Any:
        return encode(x, weights, heads, norm_first, eps)

    fitted = implementation(encoder_layer, "encoder_layer", arrays="numpy")
    assert found_out(fitted, dtype) == {"norm_first": "yes" if norm_first else "no", "eps": str(eps)}
    assert not broken(fitted, dtype)


def test_another_number_that_is_added_is_broken() -> None:
    def encoder_layer(x: Any, weights: Any, *, heads: int) -> Any:
        return encode(x, weights, heads, False, 1e-2)

    fitted = implementation(encoder_layer, "encoder_layer", arrays="numpy")
    assert not found_out(fitted)
    assert "encoder_agrees_with_reference" in broken(fitted, "float32")


def powers(heads: int) -> np.ndarray:
    return (2.0 ** (-8 * np.arange(1, heads + 1) / heads)).astype(np.float32)


def test_slopes_of_powers_of_two_alone_are_enough_if_the_others_raise() -> None:
    def strict(heads: int) -> np.ndarray:
        if heads & (heads - 1):
            raise ValueError("the number of heads must be a power of two")
        return powers(heads)

    fitted = implementation(strict, "alibi_slopes", arrays="numpy")
    assert found_out(fitted) == {"heads": "powers of two"}
    assert not broken(fitted, "float32")

    def silent(heads: int) -> np.ndarray:
        return powers(heads)

    assert "alibi_slopes" in broken(implementation(silent, "alibi_slopes", arrays="numpy"), "float32")


def test_a_function_of_servers_without_gradients_owes_none() -> None:
    @torch.no_grad()
    def paged_attention(query: Any, key_pages: Any, value_pages: Any, page_table: Any, lengths: Any) -> Any:
        from qkverify.implementations.torch_decode import paged_attention as right

        return right(query, key_pages, value_pages, page_table, lengths)

    assert not broken(implementation(paged_attention, "paged_attention", masked_values="read"), "float32")


def test_what_is_found_out_is_what_a_run_is_held_to() -> None:
    fitted = without_layout("rotary", "half")
    settled = conventions.settled(conventions_of(Cell(fitted, "cpu", "float32", fitted.name)))
    run = Run(fitted, semantics=settled)
    assert run.defaults == {"layout": "half"}
    assert run.given(layout="interleaved", padding=None) == {}
    assert run.meant(layout="interleaved") == {"layout": "half"}


# -- switches that are on by default -----------------------------------------------------------------------------------


def test_causal_that_is_on_by_default_is_switched_off() -> None:
    from qkverify.implementations.torch_decode import packed_attention as packed
    from qkverify.implementations.torch_multi_head import multi_head_attention as multi_head

    def many(x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, *, heads: int, causal: bool = True) -> Any:
        return multi_head(x, w_q, w_k, w_v, w_o, heads=heads, causal=causal)

    def pack(query: Any, key: Any, value: Any, query_starts: Any, key_starts: Any, causal: bool = True,
             scale: float = 1.0) -> Any:  # fmt: skip
        return packed(query, key, value, query_starts, key_starts, causal=causal, scale=scale)

    assert not broken(implementation(many, "multi_head_attention"), "float32")
    fitted = implementation(pack, "packed_attention", masked_values="read")
    assert any("causal=False is passed" in remark for remark in fitted.remarks)
    assert not broken(fitted, "float32")


def test_norms_that_come_first_by_default_come_last_if_that_is_asked_for() -> None:
    def first(x: Any, weights: Any, *, heads: int, norm_first: bool = True, eps: float = 1e-6) -> Any:
        return encode(x, weights, heads, norm_first, eps)

    def always(x: Any, weights: Any, *, heads: int, norm_first: bool = True) -> Any:
        return encode(x, weights, heads, True, 1e-5)

    fitted = implementation(first, "encoder_layer", arrays="numpy")
    assert found_out(fitted) == {"norm_first": "yes", "eps": "1e-06"}
    assert not broken(fitted, "float32")
    ignoring = implementation(always, "encoder_layer", arrays="numpy")
    assert "encoder_agrees_with_reference" in broken(ignoring, "float32")
