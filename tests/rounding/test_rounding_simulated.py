"""The theorem's own test: no machine of the declared precision leaves the bound, and some come near it.

Random attention problems of every option are computed by machines of random habits (`simulated_arithmetic`,
`simulated_attention`) and compared with the reference in long double. The margin is |computed - exact| / bound.

The largest of 400 problems and three machines each; in brackets, of machines that round ties to even and have
accurate functions (the others use all that `exp_ulps` and the unit roundoff allow):

                    output       lse          d query      d key        d value      d bias       d sinks
    float64         0.61 (0.11)  0.79 (0.23)  0.57 (0.07)  0.36 (0.14)  0.50 (0.26)  0.29 (0.20)  0.21 (0.05)
    float32         0.78 (0.22)  0.99 (0.20)  0.47 (0.05)  0.34 (0.17)  0.59 (0.38)  0.37 (0.15)  0.30 (0.02)
    tf32            0.91 (0.42)  0.99 (0.69)  0.47 (0.31)  0.61 (0.45)  0.88 (0.40)  0.44 (0.12)  0.63 (0.46)
    bfloat16 fused  0.99 (0.62)  0.99 (0.16)  0.98 (0.68)  0.97 (0.84)  0.98 (0.77)  0.99 (0.83)  0.94 (0.42)
    float16 fused   0.98 (0.68)  0.99 (0.13)  0.98 (0.88)  0.98 (0.93)  1.00 (0.99)  0.99 (0.82)  0.89 (0.65)
    bfloat16 eager  0.89 (0.66)  0.82 (0.55)  0.23 (0.15)  0.25 (0.14)  0.98 (0.80)  0.28 (0.15)  0.20 (0.09)
    float16 eager   0.85 (0.57)  0.91 (0.68)  0.78 (0.51)  0.77 (0.53)  0.98 (0.93)  0.56 (0.27)  0.26 (0.15)

Positional encodings and rotary embeddings reach 0.73 to 1.00, multi-head attention 0.15 to 0.64.

Not faithful, and so not drawn: a fused kernel that rounds the scaled query to its storage format (up to 2.3
times the bound of the output, thousands of times that of the log-sum-exp), tf32 by truncation (1.6 times),
and inputs below the smallest normal number that are read as zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.problem.attention_problem import Problem
from qkverify.reference import attention as reference_attention
from qkverify.reference import attention_vjp, multi_head_attention
from qkverify.reference.positions import positional_encoding as reference_encoding
from qkverify.reference.positions import rotary as reference_rotary
from qkverify.rounding import FLOAT64, FORMATS, Bounded, Precision
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.runs.run import Run

from .simulated_arithmetic import Habits, Machine, to_format
from .simulated_attention import Attention, multi_head, positional_encoding, rotary

LONG = np.longdouble
LONG_UNIT = float(np.finfo(LONG).eps) / 2
APPROACHED = 0.05  # a bound that nothing comes nearer to than this would hide bugs: design/numerics.md
PROBLEMS, MACHINES = 40, 2

MODELS = {
    "float64": ("float64", "plain"),
    "float32": ("float32", "plain"),
    "tf32": ("float32", "tf32"),
    "bfloat16-fused": ("bfloat16", "fused"),
    "float16-fused": ("float16", "fused"),
    "bfloat16-eager": ("bfloat16", "eager"),
    "float16-eager": ("float16", "eager"),
}
# Fused kernels that round once more: the field of `Precision` that says where.
FURTHER = {
    f"{dtype}-{field}": (dtype, field)
    for dtype in ("float16", "bfloat16")
    for field in ("parts", "splits", "row_sum")
}
MODELS |= {model: (dtype, "fused") for model, (dtype, _) in FURTHER.items()}
every_model = pytest.mark.parametrize("model", MODELS)


def precision_of(model: str) -> Precision:
    dtype, kind = MODELS[model]
    precision = Precision.named(kind, dtype)
    return replace(precision, **{FURTHER[model][1]: FORMATS[dtype]}) if model in FURTHER else precision  # type: ignore[arg-type]


# -- problems ----------------------------------------------------------------------------------------------


def drawn_problem(rng: np.random.Generator, dtype: str) -> Problem:
    """Small sizes, several tiles of keys, any options, numbers of any magnitude that the dtype has."""

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    def array(*shape: int) -> np.ndarray:
        filled = pick(
            lambda: rng.standard_normal(shape),
            lambda: rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2),
            lambda: rng.random(shape),
            lambda: rng.integers(-3, 4, shape),
            lambda: np.full(shape, rng.random()),
        )()
        return np.asarray(filled, np.float64).astype(NUMPY_DTYPES[dtype])

    batch, groups, group = pick((1, 1, 1), (1, 1, 4), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2))
    heads, queries, keys = groups * group, pick(1, 2, 3, 5, 9), pick(1, 2, 3, 5, 8, 17, 33, 49)
    size, value_size = pick(1, 2, 3, 5, 8), pick(1, 2, 3)
    # The ends of the range, where products underflow or sums overflow, are reached by the gradients.
    far = pick(1.0, 1.0, *{"float64": (), "float16": (2.0**-17, 2.0**-9, 2.0**14)}.get(dtype, (2.0**-122,)))
    upstream = array(batch, heads, queries, value_size).astype(np.float64) * far
    upstream = np.clip(upstream, -6e4, 6e4).astype(NUMPY_DTYPES[dtype])
    wide = np.float64 if dtype == "float64" else np.float32
    options: dict[str, Any] = {}
    if rng.random() < 0.25:
        options["mask"] = rng.random((pick(1, batch), pick(1, heads), pick(1, queries), keys)) < 0.7
    if rng.random() < 0.4:
        bias = array(pick(1, batch), pick(1, heads), pick(1, queries), keys)
        options["bias"] = (bias + np.array(pick(0, 0, 100, -1000))).astype(NUMPY_DTYPES[dtype])
    if rng.random() < 0.3:
        options["causal"] = True
    if rng.random() < 0.15:
        options["window"] = pick((1, 1), (2, None), (None, 0), (40, 2))
    if rng.random() < 0.5:
        options["scale"] = pick(1.0, 0.5, 0.3, 2.0, -0.7)
    if rng.random() < 0.2:
        options["softcap"] = pick(1.0, 2.0, 5.3, 30.0)
    if rng.random() < 0.2:
        options["alibi_slopes"] = np.exp2(-1.0 - rng.integers(0, 6, heads)).astype(wide)
    if rng.random() < 0.2:
        options["key_lengths"] = rng.integers(0, keys + 1, batch).astype(np.int32)
    if rng.random() < 0.3:
        options["sinks"] = rng.standard_normal(heads).astype(wide)
    return Problem(
        query=array(batch, heads, queries, size),
        key=array(batch, groups, keys, size),
        value=array(batch, groups, keys, value_size),
        upstream=upstream,
        return_lse=True,
        causal_alignment=pick("bottom-right", "top-left"),
        empty_rows=pick("zero", "zero", "nan", "uniform"),
        **options,
    )


# -- what is exact, what is allowed, what is computed ------------------------------------------------------


def declared(
    query, key, value, *, mask=None, bias=None, causal=False, window=None, scale=None, softcap=None,
    alibi_slopes=None, key_lengths=None, sinks=None, return_lse=False,
):  # fmt: skip
    """What the engine is told of the machines: all options, in NumPy. It is never called."""


def engine(model: str, delta: str) -> Run:
    dtype, _ = MODELS[model]
    described = describe(declared, arrays="numpy", dtypes=(dtype,))
    return Run(described, "cpu", dtype, {"delta": delta}, precision_of(model))


def long(x: Any) -> Any:
    return np.asarray(x, np.float64).astype(LONG)


def exact(problem: Problem, delta: str) -> dict[str, Any]:
    """The reference in long double."""
    query, key, value, upstream = map(long, (problem.query, problem.key, problem.value, problem.upstream))
    options = problem.reference_options
    for name in ("bias", "alibi_slopes", "sinks", "scale", "softcap"):
        if name in options:
            options[name] = long(options[name])[()]
    output, lse = reference_attention(query, key, value, **options)
    del options["return_lse"]
    gradients = attention_vjp(query, key, value, upstream, **options, delta=delta)
    return {"output": output, "lse": lse, **{f"d {name}": x for name, x in gradients.items()}}


def allowed(run: Run, problem: Problem) -> dict[str, Any]:
    """What the engine allows; its own share, of a float64 reference, exchanged for that of long double."""
    output, lse = run.bound(problem)
    bounds = {"output": output, "lse": lse}
    bounds |= {f"d {name}": x for name, x in run.gradient_bounds(problem).items()}
    share = 1 + FLOAT64.unit / run.precision.accumulate.unit
    return {name: with_long(x.errors / share, run.precision) for name, x in bounds.items()}


def with_long(error: Any, precision: Precision) -> Any:
    """With the share of the reference in long double, which rounds as well."""
    return error * (1 + LONG_UNIT / precision.accumulate.unit)


def computed(problem: Problem, machine: Machine, delta: str) -> dict[str, Any]:
    attention = Attention(problem, machine)
    output, lse = attention.forward()
    gradients = attention.gradients(delta)
    return {"output": output, "lse": lse, **{f"d {name}": x for name, x in gradients.items()}}


def margin(got: Any, truth: Any, bound: Any) -> float:
    """The largest |got - truth| / bound: inf for a NaN where a number is due."""
    got = np.asarray(got, LONG)
    same = (got == truth) | (np.isnan(got) & np.isnan(truth)) | np.isposinf(bound)
    ratios = np.where(same, 0.0, np.abs(got - truth) / np.where(bound == 0, 0.0, bound))
    return float(np.max(np.where(np.isnan(ratios), np.inf, ratios), initial=0.0))


class Margin(NamedTuple):
    """|computed - exact| / bound, the largest of an array: of what, by whom, in which problem."""

    name: str
    size: float
    habits: Habits
    problem: Any


@np.errstate(all="ignore")
def attention_margins(
    model: str, problems: int = PROBLEMS, machines: int = MACHINES, actual: str | None = None, start: int = 0
) -> list[Margin]:
    """Of each machine on each problem.

    The bound is that of `model`; the machines have the precision of `actual`, by default the same.
    """
    precision, margins = precision_of(actual or model), []
    for seed in range(start, start + problems):
        rng = np.random.default_rng(seed)
        problem = drawn_problem(rng, MODELS[model][0])
        delta = ("weights", "output")[seed % 2]
        truth, bound = exact(problem, delta), allowed(engine(model, delta), problem)
        for _ in range(machines):
            habits = Habits.drawn(rng, precision)
            got = computed(problem, Machine(precision, habits, rng), delta)
            for name in truth:
                margins.append(Margin(name, margin(got[name], truth[name], bound[name]), habits, problem))
    return margins


def judged(margins: list[Margin]) -> None:
    """All margins at most 1, and for each quantity one of `APPROACHED` at least. The largest are printed."""
    worst = max(margins, key=lambda margin: margin.size)
    assert worst.size <= 1, "{} is off by {:.4g} of its bound\n{}\n{}".format(*worst)
    largest = {name: max(m.size for m in margins if m.name == name) for name in {m.name: 0 for m in margins}}
    print(", ".join(f"{name} {size:.2f}" for name, size in largest.items()))
    assert min(largest.values()) >= APPROACHED, largest


# -- the tests ---------------------------------------------------------------------------------------------


@every_model
def test_attention_and_its_gradients_stay_within_the_bound_and_come_near_it(model: str) -> None:
    judged(attention_margins(model))


@pytest.mark.parametrize(
    ("model", "actual"),
    [
        ("float64", "float32"),
        ("float32", "tf32"),
        ("tf32", "bfloat16-fused"),
        ("bfloat16-fused", "bfloat16-eager"),
        ("float16-fused", "float16-eager"),
    ],
)
def test_a_machine_of_lower_precision_than_declared_is_found_out(model: str, actual: str) -> None:
    beyond = {m.name for m in attention_margins(model, problems=20, machines=1, actual=actual) if m.size > 1}
    assert {"output", "lse", "d query", "d key", "d value"} <= beyond


@pytest.mark.parametrize("model", [model for model, (_, field) in FURTHER.items() if field != "splits"])
def test_a_further_rounding_needs_its_field(model: str) -> None:
    """Splits that are stored show rarely: see `tests/probes/test_further_roundings`."""
    dtype, field = FURTHER[model]
    quantities = {"parts": {"d key", "d value"}, "row_sum": {"output", "lse"}}[field]
    margins = attention_margins(f"{dtype}-fused", problems=120, machines=2, actual=model)
    assert {m.name for m in margins if m.size > 1} & quantities


@pytest.mark.parametrize("model", FURTHER)
@np.errstate(all="ignore")
def test_the_field_of_a_further_rounding_allows_that_and_no_more(model: str) -> None:
    """Of the output one unit roundoff: of the terms where splits are stored, of the result where the sum of a row is rounded."""
    dtype, field = FURTHER[model]
    unit, tiny = FORMATS[dtype].unit, FORMATS[dtype].tiny
    wider, fused = engine(model, "weights"), engine(f"{dtype}-fused", "weights")
    for seed in range(20):
        problem = drawn_problem(np.random.default_rng(seed), dtype)
        loose, tight = (allowed(run, problem) for run in (wider, fused))
        assert not any((loose[name] < tight[name]).any() for name in loose)
        if field == "parts":
            for name in set(loose) - {"d key", "d value"}:
                np.testing.assert_array_equal(loose[name], tight[name])
            continue
        terms = terms_of(fused, problem) if field == "splits" else np.abs(fused.exact(problem))
        added = (loose["output"] - tight["output"])[np.isfinite(loose["output"])]
        most = (
            unit * terms * (1 + 8 * unit)
            + 4 * unit * tight["output"]
            + 60 * tiny * (1 + terms_of(fused, problem))
        )
        assert np.all(added <= most[np.isfinite(loose["output"])])


def terms_of(run: Run, problem: Problem) -> np.ndarray:
    """The sums of weights times the magnitudes of the values, (B,H,Q,E)."""
    return np.abs(run.exact(problem.replace(value=np.abs(problem.value), return_lse=False)))


@every_model
def test_multi_head_attention_stays_within_the_bound_and_comes_near_it(model: str) -> None:
    judged(multi_head_margins(model))


@every_model
def test_positions_stay_within_the_bound_and_come_near_it(model: str) -> None:
    judged(position_margins(model))


@np.errstate(all="ignore")
def multi_head_margins(model: str) -> list[Margin]:
    precision, dtype, margins = precision_of(model), MODELS[model][0], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        heads, length, size, inner = (int(rng.integers(1, n)) for n in (3, 5, 4, 3))
        shapes = ((2, length, size), *[(size, heads * inner)] * 3, (heads * inner, size))
        arrays = [rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype]) for shape in shapes]
        bound = multi_head_attention(*(bounded(x, model) for x in arrays), heads=heads).errors
        truth = multi_head_attention(*map(long, arrays), heads=heads)
        habits = Habits.drawn(rng, precision)
        got = multi_head(Machine(precision, habits, rng), arrays[0], arrays[1:], heads)
        size = margin(got, truth, with_long(bound, precision))
        margins.append(Margin("multi-head output", size, habits, f"seed {seed}"))
    return margins


@np.errstate(all="ignore")
def position_margins(model: str) -> list[Margin]:
    """The encoding and the rotary embedding, at positions up to a million."""
    precision, dtype, margins = precision_of(model), MODELS[model][0], []
    base = Bounded(10000.0, 0.0, precision)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        habits = Habits.drawn(rng, precision)
        machine = Machine(precision, habits, rng)
        dim, start = 2 * int(rng.integers(1, 9)), int(10 ** rng.uniform(0, 6)) * int(rng.integers(2))
        positions = np.arange(start, start + 5, dtype=np.float64)
        way = str(rng.choice(["divide", "inverse", "logarithm"]))
        layout, halves = (("interleaved",) * 2, ("concatenated", "half"))[seed % 2]
        bound = reference_encoding(5, dim, layout=layout, base=base, start=start).errors
        truth = reference_encoding(5, dim, layout=layout, base=LONG(10000), start=start)
        got = positional_encoding(machine, positions, dim, layout, way)
        size = margin(got, truth, with_long(bound, precision))
        margins.append(Margin("encoding", size, habits, f"seed {seed}, {way}"))
        x = rng.standard_normal((2, 5, dim)).astype(NUMPY_DTYPES[dtype])
        bound = reference_rotary(bounded(x, model), positions, layout=halves, base=base).errors
        truth = reference_rotary(long(x), long(positions), layout=halves, base=LONG(10000))
        got = rotary(machine, np.asarray(x, np.float64), positions, halves, way)
        size = margin(got, truth, with_long(bound, precision))
        margins.append(Margin("rotary", size, habits, f"seed {seed}, {way}"))
    return margins


def bounded(x: Any, model: str) -> Bounded:
    """Exact numbers of the dtype of `model`."""
    return Bounded(np.asarray(x, np.float64), 0.0, precision_of(model), FORMATS[MODELS[model][0]].unit)


# -- the simulation's own tests ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_to_even_is_that_of_the_hardware_formats(dtype: str) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(5000) * 2.0 ** rng.integers(-160, 130, 5000)
    numbers = np.concatenate(
        [numbers, np.arange(-600, 600) / 512, [65519.0, 65520.0, np.inf, -np.inf, np.nan, 0]]
    )
    if dtype == "bfloat16":  # ml_dtypes goes by way of float32
        numbers = np.clip(numbers, -3e38, 3e38).astype(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        expected = numbers.astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)).astype(np.float64)
        np.testing.assert_array_equal(to_format(numbers, FORMATS[dtype], "even", rng), expected)


@pytest.mark.parametrize("rounding", ["up", "down", "either"])
def test_every_rounding_is_within_the_unit_roundoff(rounding: str) -> None:
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal(2000)
    for format in FORMATS.values():
        rounded = to_format(numbers, format, rounding, rng)
        assert np.all(np.abs(rounded - numbers) <= format.unit * np.abs(numbers))
        np.testing.assert_array_equal(to_format(rounded, format, rounding, rng), rounded)
