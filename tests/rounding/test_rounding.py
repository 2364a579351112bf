"""Each rule of `Bounded` against samples, and what the duck array promises: no bound is ever lost."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qkverify.reference as reference
from qkverify.rounding import (
    BFLOAT16,
    EXACT,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORMATS,
    TF32,
    Bounded,
    Precision,
    gamma,
)

from .simulated_arithmetic import Habits, Machine, cubic_exponential

MODELS = {
    "float64": Precision.plain("float64"),
    "float32": Precision.plain("float32"),
    "float16": Precision.plain("float16"),
    "bfloat16": Precision.plain("bfloat16"),  # so coarse that terms of second order show
    "tf32": Precision.tf32(),
    "bfloat16-fused": Precision.fused("bfloat16"),
    "float16-fused": Precision.fused("float16"),
    "bfloat16-eager": Precision.eager("bfloat16"),
    "float16-eager": Precision.eager("float16"),
}
every_model = pytest.mark.parametrize("precision", MODELS.values(), ids=MODELS.keys())
every_format = pytest.mark.parametrize("format", [FLOAT64, FLOAT32, FLOAT16, BFLOAT16], ids=lambda f: f.name)


def plain(format: Any) -> Precision:
    return Precision(format, format, format, format)


# -- rules against samples ---------------------------------------------------------------------------------

Vectors = tuple[tuple[int, ...], ...]
VECTOR: Vectors = ((7,),)
PAIR: Vectors = ((3, 4), (3, 4))

# What the reference calls, what a machine does, the shapes of the arguments.
RULES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Vectors]] = {
    "add": (operator.add, lambda m, a, b: m.result(a + b), PAIR),
    "add broadcast": (operator.add, lambda m, a, b: m.result(a + b), ((3, 1), (4,))),
    "subtract": (operator.sub, lambda m, a, b: m.result(a - b), PAIR),
    "multiply": (operator.mul, lambda m, a, b: m.result(a * b), PAIR),
    "multiply broadcast": (operator.mul, lambda m, a, b: m.result(a * b), ((), (4,))),
    "divide": (operator.truediv, lambda m, a, b: m.result(a / b), PAIR),
    "power": (lambda a: np.abs(a) ** np.array([-1.0, 0.0, 0.3, 0.5, 1.0, 2.0, -0.7]),
              lambda m, a: m.power(np.abs(a), np.array([-1.0, 0.0, 0.3, 0.5, 1.0, 2.0, -0.7])), VECTOR),
    "exp": (np.exp, lambda m, a: m.exp(a), VECTOR),
    "tanh": (np.tanh, lambda m, a: m.tanh(a), VECTOR),
    "log": (lambda a: np.log(np.abs(a)), lambda m, a: m.log(np.abs(a)), VECTOR),
    "sqrt": (lambda a: np.sqrt(np.abs(a)), lambda m, a: m.result(np.sqrt(np.abs(a))), VECTOR),
    "sin": (np.sin, lambda m, a: m.sin(a), VECTOR),
    "cos": (np.cos, lambda m, a: m.cos(a), VECTOR),
    "matmul": (operator.matmul, lambda m, a, b: m.product(a, b), ((2, 3, 5), (2, 5, 4))),
    "matmul of one term": (operator.matmul, lambda m, a, b: m.product(a, b), ((2, 1), (1, 3))),
    "sum": (lambda a: np.sum(a, axis=-1, keepdims=True), lambda m, a: m.sum(a), ((3, 6),)),
    "stored": (np.positive, lambda m, a: m.stored(a), VECTOR),
    "negative": (operator.neg, lambda m, a: -a, VECTOR),
    "absolute": (np.abs, lambda m, a: np.abs(a), VECTOR),
    "maximum": (np.maximum, lambda m, a, b: np.maximum(a, b), PAIR),
    "relu": (lambda a: np.maximum(a, 0.0), lambda m, a: np.maximum(a, 0.0), VECTOR),
}  # fmt: skip


def drawn(rng: np.random.Generator, shape: tuple[int, ...], precision: Precision) -> Bounded:
    """Numbers of all magnitudes with errors up to their own size, or exact."""
    value = rng.standard_normal(shape) * 10.0 ** rng.uniform(-2, 1, shape)
    kinds = (0.0, np.abs(value) * rng.uniform(0, 0.3, shape), np.full(shape, 0.05), np.asarray(0.01))
    # Known to be representable in float64 alone, so that operands are rounded.
    return Bounded(value, kinds[rng.integers(4)], precision, FLOAT64.unit)


def sample(rng: np.random.Generator, x: Bounded) -> Any:
    """Numbers within the errors: all at one end, each at either end, or anywhere."""
    ends = (1.0, -1.0, rng.choice([-1.0, 1.0], x.shape), rng.uniform(-1, 1, x.shape))
    return x.value + ends[rng.integers(4)] * x.errors


@np.errstate(all="ignore")
def margins(rule: str, precision: Precision, *, problems: int = 16, samples: int = 4) -> list[float]:
    """|computed - value| / error of each sample, the share of float64's own rounding added to the error."""
    call, compute, shapes = RULES[rule]
    share, sizes = 1 + FLOAT64.unit / precision.accumulate.unit, []
    for seed in range(problems):
        rng = np.random.default_rng(seed)
        arguments = [drawn(rng, shape, precision) for shape in shapes]
        result = call(*arguments)
        for _ in range(samples):
            machine = Machine(precision, Habits.drawn(rng, precision), rng)
            off = np.abs(compute(machine, *(sample(rng, x) for x in arguments)) - result.value)
            size = np.where((off == 0) | np.isposinf(result.errors), 0.0, off / (result.errors * share))
            sizes.append(float(np.max(np.where(np.isnan(size), np.inf, size))))
    return sizes


@every_model
@pytest.mark.parametrize("rule", RULES)
def test_no_sample_leaves_the_bound_of_a_rule_and_some_come_near_it(rule: str, precision: Precision) -> None:
    sizes = margins(rule, precision)
    assert max(sizes) <= 1
    assert max(sizes) >= 0.25


def test_softmax_stays_within_its_bound_where_the_shift_is_uncertain() -> None:
    """max has no error of its own: softmax does not depend on the shift, however wrong it is."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        precision = MODELS["float32"]
        scores = Bounded(3 * rng.standard_normal((4, 20)), np.asarray(1e-3), precision)
        bound = reference.softmax(scores)
        probabilities = reference.softmax(sample(rng, scores))
        assert np.all(np.abs(probabilities - bound.value) <= bound.errors)


# -- the edges of the range --------------------------------------------------------------------------------


# Past the largest number; or partial sums may be. Of two numbers `x` of that size, and of x, -x, x.
OVERFLOWING: dict[str, Callable[[Bounded, Bounded], Bounded]] = {
    "add": lambda x, _: x + x,
    "subtract": lambda x, _: x - -x,
    "multiply": lambda x, _: x * 2.0,
    "divide": lambda x, _: x / 0.5,
    "one number": lambda x, _: x[0] * 2.0,
    "power": lambda x, _: x**1.5,
    "exp": lambda x, _: np.exp(x * 0.0 + 1000.0),
    "sum": lambda x, _: np.sum(x, axis=-1, keepdims=True),
    "sum to one number": lambda x, _: np.sum(x),
    "partial sum": lambda _, mixed: np.sum(mixed, axis=-1, keepdims=True),
    "matmul": lambda x, _: x.reshape(1, 2) @ np.ones((2, 1)),
    "partial matmul": lambda _, mixed: mixed.reshape(1, 3) @ np.ones((3, 1)),
    "sine of it": lambda x, _: np.sin(x * 2.0),
    "cosine of it": lambda x, _: np.cos(x * 2.0),
    "tanh of it": lambda x, _: np.tanh(x * 2.0 - x * 2.0),
    "weights of it": lambda x, _: reference.softmax(x * 2.0),
}


@pytest.mark.parametrize("result", OVERFLOWING)
@every_format
def test_past_the_largest_number_nothing_is_said(result: str, format: Any) -> None:
    x = Bounded(np.array([format.huge, format.huge]), 0.0, plain(format))
    mixed = Bounded(np.array([format.huge, -format.huge, format.huge]), 0.0, plain(format))
    with np.errstate(all="ignore"):
        assert not np.any(np.isfinite(OVERFLOWING[result](x, mixed).errors))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_what_is_stored_may_overflow_although_it_was_computed(name: str) -> None:
    precision = Precision.fused(name)
    computed = Bounded(np.array([1.0, 1e39]), 0.0, replace(precision, elementwise=FLOAT64)) * 1.0
    stored = np.positive(Bounded(computed.value, computed.error, precision, FLOAT64.unit))
    assert np.isposinf(stored.errors).tolist() == [False, True]


@every_format
def test_the_largest_number_is_still_in_range(format: Any) -> None:
    largest = Bounded(np.array([format.huge / 4, -format.huge / 4]), 0.0, plain(format))
    for result in (
        largest + largest,
        largest * 1.5,
        largest.sum(-1),
        largest.reshape(1, 2) @ np.ones((2, 1)),
    ):
        assert np.all(np.isfinite(result.errors))


@every_format
def test_underflow_costs_the_smallest_error_of_the_format(format: Any) -> None:
    small = Bounded(np.array([math.sqrt(format.tiny) / 4]), 0.0, plain(format))
    for result in (small * small, small / (1 / small), np.exp(small * 0 - 1e4)):
        assert result.errors[0] >= format.tiny
        assert result.errors[0] <= 2 * format.tiny
    product = small.reshape(1, 1) @ small.reshape(1, 1)
    assert product.errors[0, 0] >= format.tiny


@pytest.mark.parametrize("format", [FLOAT32, BFLOAT16], ids=lambda f: f.name)
def test_differences_and_sums_may_be_flushed_to_zero(format: Any) -> None:
    """1.5 - 1 of the smallest normal number is subnormal."""
    smallest = 2.0**-126
    x = Bounded(np.array([1.5 * smallest, -smallest]), 0.0, plain(format))
    for result in (x[:1] + x[1:], x[:1] - -x[1:], x.sum(0)):
        assert np.all(result.errors >= 0.5 * smallest)


def test_a_masked_score_is_an_exact_zero_whatever_its_error() -> None:
    for error in (0.0, 1.0, np.inf, np.nan):
        weights = np.exp(Bounded(np.array([-np.inf]), np.array([error]), MODELS["float32"]))
        assert weights.value[0] == 0
        assert weights.errors[0] <= FLOAT32.tiny


@pytest.mark.parametrize("format", [FLOAT64, FLOAT32, FLOAT16], ids=lambda f: f.name)
@pytest.mark.parametrize("error", [0.0, 1.0, 36.0, 100.0, 599.0, 690.0, 720.0, 760.0, np.inf, np.nan])
def test_an_exp_that_underflows_float64_still_covers_what_its_error_allows(error: float, format: Any) -> None:
    score = -746.0
    power = np.exp(Bounded(np.array([score]), np.array([error]), plain(format)))
    assert power.value[0] == 0
    with np.errstate(over="ignore"):
        reached = np.exp(score + error)
    assert not power.errors[0] < reached
    assert np.isfinite(error) or not np.isfinite(power.errors[0])


def test_masked_scores_stay_masked_through_sums_and_differences() -> None:
    scores = Bounded(np.array([-np.inf, 0.5]), np.array([np.nan, 1e-7]), MODELS["float32"])
    with np.errstate(invalid="ignore"):
        for shifted in (scores + 1.0, scores - 1.0, scores + np.array([2.0, 3.0])):
            assert np.isneginf(shifted.value).tolist() == [True, False]
            assert np.isfinite(shifted.errors[1])
            assert np.exp(shifted).errors[0] <= FLOAT32.tiny


def test_of_a_row_that_overflows_nothing_is_said_to_hidden_keys_either() -> None:
    """Op by op in float16 such a row is NaN throughout; a gradient then has NaN for keys that no query may see."""
    half, hidden = Precision.eager("float16"), np.array([[[[True, False], [True, False]]]])
    rows = np.array([[[[300.0], [1.0]]]])
    query, one = Bounded(rows, 0.0, half, FLOAT16.unit), Bounded(rows[:, :, 1:], 0.0, half, FLOAT16.unit)
    key, value = np.array([[[[300.0], [1.0]]]]), np.ones((1, 1, 2, 1))
    for asked, unknown in ((query, True), (one, False)):
        mask, upstream = hidden[:, :, : asked.shape[2]], np.ones((1, 1, asked.shape[2], 1))
        gradients = reference.attention_vjp(asked, key, value, upstream, mask=mask, scale=1.0)
        assert np.isposinf(gradients["value"].errors[0, 0, 1]).all() == unknown
        assert np.isposinf(gradients["key"].errors[0, 0, 1]).all() == unknown


def test_dividing_by_what_may_be_zero_says_nothing() -> None:
    divisor = Bounded(np.array([1.0, 1.0, 0.5]), np.array([0.5, 1.0, 2.0]), MODELS["float32"])
    assert np.isfinite((1.0 / divisor).errors).tolist() == [True, False, False]
    assert np.isfinite(np.log(divisor).errors).tolist() == [True, False, False]


def test_an_infinite_error_times_zero_is_infinite() -> None:
    unknown, zero = Bounded(np.ones((2, 2)), np.inf, EXACT), np.zeros((2, 2))
    for product in (unknown * zero, zero * unknown, unknown @ zero, zero @ unknown):
        assert np.all(np.isposinf(product.errors))
    nowhere = Bounded(np.full((1, 1), np.nan), 0.0, EXACT)  # a row that is NaN by contract
    assert not np.any(np.isposinf((nowhere @ np.ones((1, 1))).errors))


# -- gamma and the models ----------------------------------------------------------------------------------


@given(n=st.integers(0, 5000), bits=st.integers(1, 60))
def test_gamma_is_highams(n: int, bits: int) -> None:
    unit = 2.0**-bits
    exact = Fraction(n) * Fraction(unit)
    if exact >= 1:
        assert gamma(n, unit) == math.inf
    else:
        assert gamma(n, unit) == pytest.approx(float(exact / (1 - exact)))


@given(n=st.integers(1, 60), bits=st.integers(7, 12))
def test_gamma_covers_any_n_roundings(n: int, bits: int) -> None:
    unit = Fraction(1, 2**bits)
    for product in ((1 + unit) ** n, (1 - unit) ** n, 1 / (1 - unit) ** n):
        assert abs(product - 1) <= Fraction(gamma(n, float(unit))) * (1 + Fraction(1, 2**50))


def test_a_fast_exponential_stays_within_its_bound_and_needs_it() -> None:
    x = -np.linspace(0, 80, 1_000_001).astype(np.float32).astype(np.float64)
    wrong = np.abs(cubic_exponential(x) - np.exp(x))
    for model, share in ((Precision.fused_fast_exp, (0.8, 1.0)), (Precision.fused, (10.0, np.inf))):
        bound = np.exp(Bounded(x, 0.0, model("float16"), FORMATS["float32"].unit)).errors
        assert share[0] < (wrong / bound).max() < share[1]


@pytest.mark.parametrize("kind", ["plain", "fused", "fused-fast-exp", "eager", "tf32"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_model_never_computes_more_coarsely_than_it_stores(kind: str, dtype: str) -> None:
    precision = Precision.named(kind, dtype)
    assert precision.accumulate.unit <= precision.elementwise.unit <= precision.output.unit
    assert precision.output == FORMATS[dtype]


def test_the_models_differ_where_they_should() -> None:
    fused, eager = Precision.fused("bfloat16"), Precision.eager("bfloat16")
    assert {f.name for f in fields(Precision) if getattr(fused, f.name) != getattr(eager, f.name)} == {
        "elementwise"
    }
    assert (fused.operand, fused.accumulate, fused.elementwise) == (BFLOAT16, FLOAT32, FLOAT32)
    assert Precision.fused("float64") == Precision.eager("float64") == Precision.plain("float64") == EXACT
    assert Precision.tf32().operand == TF32
    with pytest.raises(KeyError, match="exact"):
        Precision.named("exact", "float32")


# -- operands ----------------------------------------------------------------------------------------------


def test_only_operands_that_are_finer_than_the_operand_format_are_rounded() -> None:
    precision = Precision.fused("bfloat16")
    one = np.ones((1, 1))
    stored = Bounded(one, 0.0, precision, BFLOAT16.unit)
    assert (stored @ stored).errors[0, 0] < BFLOAT16.unit / 1000
    assert (stored * 1.0 @ stored).errors[0, 0] > BFLOAT16.unit  # computed, hence in float32
    assert (np.positive(stored * 1.0) @ stored).errors[
        0, 0
    ] < 1.01 * BFLOAT16.unit  # stored: not rounded twice
    single = Bounded(one, 0.0, Precision.tf32(), FLOAT32.unit)
    assert (single @ single).errors[0, 0] > 2 * TF32.unit  # inputs as well


def test_the_coarsest_of_several_formats_is_not_taken_for_all() -> None:
    precision = Precision.fused("bfloat16")
    stored = Bounded(np.ones(2), 0.0, precision, BFLOAT16.unit)
    computed = stored * 1.0
    everywhere = np.ones(2, dtype=bool)
    for mixed in (
        np.where(everywhere, stored, computed),
        np.where(everywhere, computed, stored),
        np.concatenate([stored, computed]),
        np.stack([computed, stored]),
    ):
        assert mixed.unit == FLOAT32.unit
    assert np.where(everywhere, stored, stored).unit == BFLOAT16.unit


def test_a_constant_that_is_not_representable_has_an_error() -> None:
    """A third, in a row of three keys that sees none of them and weighs all alike."""
    for precision in (Precision.plain("float32"), Precision.eager("bfloat16")):
        weights = Bounded(np.ones(2), 0.0, precision, precision.elementwise.unit)
        chosen = np.where(np.array([True, False]), weights, 1 / 3)
        assert chosen.errors[0] == 0
        machine = Machine(precision, Habits(), np.random.default_rng(0))
        assert abs(machine.result(1 / 3) - 1 / 3) <= chosen.errors[1] <= precision.elementwise.unit / 2
        for representable in (0.0, 1.0, 0.25, -np.inf, np.nan):
            assert np.where(np.array([True, False]), weights, representable).errors[1] == 0


# -- rearrangements ----------------------------------------------------------------------------------------

MOVES: dict[str, Callable[[Any], Any]] = {
    "one row": lambda x: x[1],
    "slice": lambda x: x[..., 1:],
    "new axis": lambda x: x[:, None, :],
    "step": lambda x: x[:, ::-2],
    "fancy": lambda x: x[[2, 0], 1:3],
    "boolean": lambda x: x[np.array([True, False, True])],
    "reshape": lambda x: np.reshape(x, (2, 6)),
    "reshape method": lambda x: x.reshape(4, 3),
    "swapaxes": lambda x: np.swapaxes(x, 0, 1),
    "swapaxes method": lambda x: x.swapaxes(0, 1),
    "transpose": np.transpose,
    "transpose method": lambda x: x.transpose(1, 0),
    "moveaxis": lambda x: np.moveaxis(x, 0, 1),
    "repeat": lambda x: np.repeat(x, 2, axis=1),
    "broadcast": lambda x: np.broadcast_to(x, (2, 3, 4)),
    "take": lambda x: np.take(x, [1, 1], axis=0),
    "flip": lambda x: np.flip(x, 0),
    "expand": lambda x: np.expand_dims(x, 1),
    "squeeze": lambda x: np.squeeze(x[None]),
    "diagonal": np.diagonal,
    "concatenate": lambda x: np.concatenate([x, x[1:]], axis=0),
    "stack": lambda x: np.stack([x, x[::-1]], axis=-1),
    "where": lambda x: np.where(np.arange(4) > 1, x, x[::-1]),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("error", ["exact", "scalar", "row", "array"])
def test_rearranging_moves_the_errors_with_the_values(move: str, error: str) -> None:
    rng = np.random.default_rng(0)
    value, shapes = rng.standard_normal((3, 4)), {"scalar": (), "row": (4,), "array": (3, 4)}
    errors: Any = 0.0 if error == "exact" else rng.random(shapes[error])
    moved = MOVES[move](Bounded(value, errors, MODELS["float32"], BFLOAT16.unit))
    assert isinstance(moved, Bounded)
    assert moved.unit == BFLOAT16.unit
    np.testing.assert_array_equal(moved.value, MOVES[move](value))
    np.testing.assert_array_equal(moved.errors, MOVES[move](np.broadcast_to(errors, value.shape)))


def test_where_takes_value_and_error_from_the_same_side() -> None:
    x = Bounded(np.array([1.0, 2.0]), np.array([0.1, 0.2]), MODELS["float32"])
    for chosen, value, error in (
        (np.where([True, False], x, -np.inf), [1.0, -np.inf], [0.1, 0.0]),
        (np.where([True, False], 0.0, x), [0.0, 2.0], [0.0, 0.2]),
    ):
        np.testing.assert_array_equal(chosen.value, value)
        np.testing.assert_array_equal(chosen.errors, error)


def test_a_scalar_error_is_that_of_every_element() -> None:
    scalar = Bounded(np.arange(6.0).reshape(2, 3), np.asarray(0.5), MODELS["float32"])
    full = Bounded(scalar.value, np.full((2, 3), 0.5), MODELS["float32"])
    for call in (
        lambda x: x + x,
        lambda x: 2 * x,
        np.exp,
        lambda x: x.sum(-1),
        lambda x: x @ x.swapaxes(0, 1),
    ):
        np.testing.assert_array_equal(call(scalar).errors, call(full).errors)
        assert call(scalar).errors.shape == call(scalar).shape


def test_comparisons_look_at_the_values() -> None:
    x = Bounded(np.array([1.0, np.inf]), np.array([9.0, 9.0]), MODELS["float32"])
    assert np.array_equal(x > 1, [False, True])
    assert np.array_equal(np.isfinite(x), [True, False])
    assert np.array_equal(x == x, [True, True])
    assert (len(x), x.ndim, x.size, np.shape(x), np.ndim(x)) == (2, 1, 2, (2,), 1)


# -- a bound is never lost ---------------------------------------------------------------------------------

UNSUPPORTED: dict[str, Callable[[Bounded], Any]] = {
    "exp2": np.exp2,
    "log1p": np.log1p,
    "minimum": lambda x: np.minimum(x, 0.0),
    "floor": np.floor,
    "remainder": lambda x: x % 2,
    "two to the power of it": lambda x: 2.0**x,
    "itself to the power of itself": lambda x: x**x,
    "reduce": np.add.reduce,
    "accumulate": np.add.accumulate,
    "outer": lambda x: np.multiply.outer(x, x),
    "where argument": lambda x: np.exp(x, where=np.ones(3, bool)),
    "out argument": lambda x: np.exp(x, out=np.empty(3)),
    "into an array": lambda x: operator.iadd(np.ones(3), x),
    "in place": lambda x: operator.iadd(x, 1.0),
    "mean": np.mean,
    "prod": np.prod,
    "cumsum": np.cumsum,
    "dot": lambda x: np.dot(x, x),
    "einsum": lambda x: np.einsum("i,i", x, x),
    "norm": np.linalg.norm,
    "min": np.min,
    "argmax": np.argmax,
    "sort": np.sort,
    "clip": lambda x: np.clip(x, 0, 1),
    "round": np.round,
    "nan_to_num": np.nan_to_num,
    "zeros_like": np.zeros_like,
    "isclose": lambda x: np.isclose(x, x),
    "sum from a start": lambda x: np.sum(x, initial=1.0),
    "condition": lambda x: np.where(x, 1.0, 2.0),
    "truth": bool,
    "math": lambda x: math.exp(x[0]),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "array": np.asarray,
    "float array": lambda x: np.asarray(x, dtype=np.float64),
}


@pytest.mark.parametrize("call", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_has_no_rule_is_a_type_error(call: Callable[[Bounded], Any]) -> None:
    with pytest.raises(TypeError):
        call(Bounded(np.array([1.0, 2.0, 4.0]), 0.0, MODELS["float32"]))


def arrays() -> dict[str, Any]:
    """Small arguments of the functions of the reference, by name."""
    rng = np.random.default_rng(0)
    shapes = {
        "query": (2, 4, 3, 5), "key": (2, 2, 6, 5), "value": (2, 2, 6, 2), "upstream": (2, 4, 3, 2),
        "lse_upstream": (2, 4, 3), "bias": (1, 4, 1, 6), "alibi_slopes": (4,), "sinks": (4,), "x": (2, 3, 4),
        "w_q": (4, 6), "w_k": (4, 6), "w_v": (4, 4), "w_o": (4, 3), "logits": (2, 5),
        "w_key": (4, 6), "w_value": (4, 2), "w_1": (4, 7), "b_1": (7,), "w_2": (7, 4), "b_2": (4,), "gain": (4,),
        "shift": (4,), "losses": (2,),
    }  # fmt: skip
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


MASKS: dict[str, dict[str, Any]] = {
    "all visible": {},
    "causal": {"causal": True},
    "empty rows": {"causal": True, "causal_alignment": "top-left", "window": (1, None),
                   "mask": np.array([True, False, True, True, True, True])},
    "lengths": {"key_lengths": np.array([0, 4])},
    "uniform": {"key_lengths": np.array([0, 4]), "empty_rows": "uniform"},
    "nan": {"key_lengths": np.array([0, 4]), "empty_rows": "nan"},
}  # fmt: skip
Q, EXTRA = ("query", "key", "value"), ("bias", "alibi_slopes", "sinks")

# Functions of the reference with the names of their arrays, positional and by keyword.
CALLS: dict[str, tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = {
    "softmax": (reference.softmax, ("logits",), ()),
    "log_sum_exp": (reference.log_sum_exp, ("logits",), ()),
    "softmax_jacobian": (reference.softmax_jacobian, ("logits",), ()),
    "softmax_vjp": (reference.softmax_vjp, ("logits", "logits"), ()),
    "scores": (reference.scores, Q[:2], EXTRA[:2]),
    "multi-head": (lambda *a: reference.multi_head_attention(*a, heads=2), ("x", "w_q", "w_k", "w_v", "w_o"), ()),
    "feed_forward": (reference.feed_forward, ("x", "w_1", "b_1", "w_2", "b_2"), ()),
    "layer_norm": (reference.layer_norm, ("x", "gain", "shift"), ()),
    "rms_norm": (reference.rms_norm, ("x", "gain"), ()),
    "cross_entropy": (
        lambda scores: reference.cross_entropy(scores, np.array([4, 0]), smoothing=0.1), ("logits",), ()),
    "cross_entropy_vjp": (
        lambda *a: reference.cross_entropy_vjp(a[0], np.array([4, 0]), a[1], smoothing=0.1), ("logits", "losses"), ()),
    "from_embeddings": (reference.from_embeddings, ("x",), ()),
    "from_queries_and_keys": (reference.from_queries_and_keys, ("x", "w_q", "w_k"), ()),
    "from_queries_keys_and_values": (reference.from_queries_keys_and_values, ("x", "w_q", "w_k", "w_value"), ()),
    "positional_encoding": (
        lambda base: reference.positional_encoding(4, 6, base=base), ("base",), ()),
    "positional_encoding start": (
        lambda start: reference.positional_encoding(4, 6, start=start, layout="concatenated"), ("start",), ()),
    "rotary": (lambda x, base: reference.rotary(x, np.arange(3.0), base=base), ("x", "base"), ()),
    "rotary half": (lambda x, at: reference.rotary(x, at, layout="half"), ("x", "at"), ()),
    "embedding": (
        lambda table, base: reference.embedding(np.array([[2, 0, 3]]), table, base=base, padding=np.array([1])),
        ("w_q", "base"), ()),
    **{f"attention, {name}": (
        lambda *a, _o=options, **k: reference.attention(*a, return_lse=True, scale=0.3, softcap=5.0, **_o, **k), Q, EXTRA)
        for name, options in MASKS.items()},
    **{f"attention_vjp, {name}, {delta}": (
        lambda *a, _o=options, _d=delta, **k: reference.attention_vjp(*a, delta=_d, softcap=5.0, **_o, **k),
        (*Q, "upstream"), (*EXTRA, "lse_upstream"))
        for name, options in MASKS.items() for delta in ("weights", "output")},
}  # fmt: skip


def results(returned: Any) -> list[Any]:
    if isinstance(returned, dict):
        return list(returned.values())
    return list(returned) if isinstance(returned, tuple) else [returned]


@np.errstate(all="ignore")
def called(name: str, bounded: Callable[[str], bool], precision: Precision = EXACT) -> list[Any]:
    """What a function of the reference returns where the arrays of some names are `Bounded`."""
    function, positional, keywords = CALLS[name]
    known = {**arrays(), "base": np.float64(10000.0), "start": np.float64(3.0), "at": np.arange(3.0)}
    given = {n: Bounded(x, 0.0, precision) if bounded(n) else x for n, x in known.items()}
    return results(function(*(given[n] for n in positional), **{n: given[n] for n in keywords}))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", ["float32", "bfloat16-fused", "float16-eager"])
def test_the_unchanged_reference_gives_the_same_values_and_a_bound(call: str, model: str) -> None:
    exact = called(call, lambda name: False)
    for bounded, expected in zip(called(call, lambda name: True, MODELS[model]), exact, strict=True):
        assert isinstance(bounded, Bounded)
        assert bounded.precision is MODELS[model]
        assert bounded.errors.shape == bounded.shape
        np.testing.assert_array_equal(bounded.value, expected)
        assert np.all(bounded.errors[np.isfinite(expected)] >= 0)


@pytest.mark.parametrize("call", CALLS)
def test_one_bounded_argument_is_enough_to_get_bounds(call: str) -> None:
    _, positional, keywords = CALLS[call]
    exact = called(call, lambda name: False)
    for argument in (*positional, *keywords):
        outputs = called(call, lambda name, argument=argument: name == argument, MODELS["float32"])
        untouched = [x for x in outputs if not isinstance(x, Bounded)]
        # Some gradients do not depend on some arguments: d value has nothing of value in it.
        assert len(untouched) < len(outputs)
        for got, expected in zip(outputs, exact, strict=True):
            np.testing.assert_array_equal(got.value if isinstance(got, Bounded) else got, expected)


@every_model
def test_a_lower_precision_never_has_a_smaller_bound(precision: Precision) -> None:
    for call in CALLS:
        pairs = zip(called(call, lambda name: True, precision), called(call, lambda name: True), strict=True)
        for coarse, fine in pairs:
            known = np.isfinite(coarse.errors)
            assert np.all(coarse.errors[known] >= fine.errors[known])
