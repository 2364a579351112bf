"""The bound's own test: no faithful machine leaves it, and some machine comes near it."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.problems import Problem
from qkverify.reference import attention as reference_attention
from qkverify.reference.attention_vjp import attention_vjp as reference_vjp
from qkverify.rounding import FLOAT64
from qkverify.runs import NUMPY_DTYPES, Run

PRECISIONS = {
    "float64": ("float64", "plain"), "float32": ("float32", "plain"), "tf32": ("float32", "tf32"),
    "bfloat16 fused": ("bfloat16", "fused"), "float16 fused": ("float16", "fused"),
    "bfloat16 eager": ("bfloat16", "eager"), "float16 eager": ("float16", "eager"),
}  # fmt: skip
LONG = np.longdouble
LONG_UNIT = float(np.finfo(LONG).eps) / 2


def unreachable(
    query,
    key,
    value,
    *,
    mask=None,
    bias=None,
    causal=False,
    window=None,
    scale=None,
    softcap=None,
    alibi_slopes=None,
    key_lengths=None,
    sinks=None,
    return_lse=False,
):
    raise AssertionError


def drawn_problem(rng: np.random.Generator, dtype: str) -> Problem:
    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    B, G, group = pick(1, 1, 2), pick(1, 1, 2), pick(1, 1, 2)
    H, Q, K = G * group, pick(1, 2, 3, 5, 9), pick(1, 2, 3, 5, 8, 17, 33, 49)
    D, E = pick(1, 2, 3, 5, 8), pick(1, 2, 3)

    def array(*shape: int) -> np.ndarray:
        filled = pick(
            lambda: rng.standard_normal(shape),
            lambda: rng.standard_normal(shape),
            lambda: rng.random(shape),
            lambda: rng.integers(-3, 4, shape),
            lambda: rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2),
            lambda: np.ones(shape) * rng.random(),
        )()
        return np.asarray(filled, np.float64).astype(NUMPY_DTYPES[dtype])

    inner = np.float64 if dtype == "float64" else np.float32
    options: dict[str, Any] = {}
    if rng.random() < 0.25:
        options["mask"] = rng.random((pick(1, B), pick(1, H), pick(1, Q), K)) < 0.7
    if rng.random() < 0.3:
        options["bias"] = (array(pick(1, B), pick(1, H), pick(1, Q), K) * pick(1, 1, 10)).astype(
            NUMPY_DTYPES[dtype]
        )
    if rng.random() < 0.3:
        options["causal"] = True
    if rng.random() < 0.15:
        options["window"] = pick((1, 1), (2, None), (None, 0), (40, 2))
    if rng.random() < 0.4:
        options["scale"] = pick(1.0, 0.5, 0.3, 2.0, -0.7)
    if rng.random() < 0.2:
        options["softcap"] = pick(1.0, 2.0, 5.3, 30.0)
    if rng.random() < 0.2:
        options["alibi_slopes"] = np.exp2(-1.0 - rng.integers(0, 6, H)).astype(inner)
    if rng.random() < 0.2:
        options["key_lengths"] = rng.integers(0, K + 1, B).astype(np.int32)
    if rng.random() < 0.2:
        options["sinks"] = rng.standard_normal(H).astype(inner)
    return Problem(
        query=array(B, H, Q, D), key=array(B, G, K, D), value=array(B, G, K, E), upstream=array(B, H, Q, E),
        return_lse=True, causal_alignment=pick("bottom-right", "top-left"),
        empty_rows=pick("zero", "zero", "nan", "uniform"), **options,
    )  # fmt: skip


def exact(problem: Problem, delta: str) -> dict[str, Any]:
    """The reference in long double."""
    names = ("query", "key", "value", "upstream")
    query, key, value, upstream = (
        np.asarray(getattr(problem, name), np.float64).astype(LONG) for name in names
    )
    options = problem.reference_options
    for name in ("bias", "alibi_slopes", "sinks"):
        if name in options:
            options[name] = np.asarray(options[name], np.float64).astype(LONG)
    for name in ("scale", "softcap"):
        if name in options:
            options[name] = LONG(options[name])
    output, lse = reference_attention(query, key, value, **options)
    del options["return_lse"]
    found = reference_vjp(query, key, value, upstream, **options, delta=delta)
    return {"output": output, "lse": lse, **{f"d {name}": x for name, x in found.items()}}


def bounds(run: Run, problem: Problem) -> dict[str, Any]:
    """What the engine allows, its own share for the oracle exchanged for that of long double."""
    output, lse = run.bound(problem)
    found = {"output": output, "lse": lse, **{f"d {n}": x for n, x in run.gradient_bounds(problem).items()}}
    unit = run.precision.accumulate.unit
    share = (1 + LONG_UNIT / unit) / (1 + FLOAT64.unit / unit)
    return {name: x.errors * share for name, x in found.items()}


def margins(got: Any, truth: Any, bound: Any) -> Any:
    got = np.asarray(got, LONG)
    with np.errstate(invalid="ignore", divide="ignore"):
        same = (got == truth) | (np.isnan(got) & np.isnan(truth)) | np.isposinf(bound)
        found = np.where(same, 0.0, np.abs(got - truth) / bound)
    return np.where(np.isnan(found), np.inf, found)
