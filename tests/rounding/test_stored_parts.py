"""Sums whose parts were stored before: the gradients of query heads that share a key, of weights that a batch shares, and of what
meets a vector; and inputs that were scaled and stored.

torch multiplies by a key that is broadcast over the heads, stores the gradient of each head, and adds: in half precision each of
these roundings counts, by half a unit in the last place, or by half the smallest subnormal number.
"""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.problem.attention_problem import Problem
from qkverify.rounding import FORMATS, Bounded, Precision
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.runs.run import Run

HALF = ("float16", "bfloat16")


def bare(query, key, value, *, scale=None):  # type: ignore[no-untyped-def]
    """Three lines of torch, as anybody writes them."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return scores.softmax(-1) @ value


def looped(query, key, value):  # type: ignore[no-untyped-def]
    """Head by head: autograd adds the gradients of a shared key one by one, and stores each sum."""
    import torch

    heads = [bare(query[:, h], key[:, 0], value[:, 0]) for h in range(query.shape[1])]
    return torch.stack(heads, 1)


def with_einsum(query, key, value, *, scale=None):  # type: ignore[no-untyped-def]
    """torch.einsum over an axis of one is an elementwise product; what autograd adds up is then stored term by term."""
    import torch

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bhqd,bhkd->bhqk", query * scale, key)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)


def with_scaled_queries(query, key, value, *, scale=None):  # type: ignore[no-untyped-def]
    """The queries are multiplied by the scale and stored: a subnormal one loses its digits before it meets a large key."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (query * scale @ key.transpose(-1, -2)).softmax(-1) @ value


def for_one_query(query, key, value, *, scale=None):  # type: ignore[no-untyped-def]
    """Decoding, as it is written by hand: elementwise products and sums."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = ((query * scale * key).sum(-1)).softmax(-1)
    return (weights[..., None] * value).sum(-2, keepdim=True)


def vector_problem(seed: int, dtype: str, queries: tuple[int, ...] = (1, 8, 17)) -> Problem:
    """Heads of size one, or a single key, numbers down to the subnormal ones."""
    rng = np.random.default_rng(seed)
    queries, keys, size = (int(rng.choice(n)) for n in (queries, (1, 2, 5), (1, 1, 2, 3, 4)))
    magnitudes = 10.0 ** np.array([rng.integers(-8, 3) for _ in range(4)])
    lengths = ((queries, size), (keys, size), (keys, 16), (queries, 16))
    arrays = [
        (rng.uniform(0.5, 1, (1, 1, *n)) * rng.choice([-1, 1], (1, 1, *n)) * m).astype(NUMPY_DTYPES[dtype])
        for n, m in zip(lengths, magnitudes, strict=True)
    ]
    return Problem(**dict(zip(("query", "key", "value", "upstream"), arrays, strict=True)))


def shared_key_problem(seed: int, dtype: str) -> Problem:
    """Two to eight heads with one key head, numbers down to the subnormal ones."""
    rng = np.random.default_rng(seed)
    heads, queries, keys, size = (
        int(rng.choice(n)) for n in ((2, 3, 4, 8), (1, 2, 5, 17), (1, 2, 3, 33), (2, 4, 8))
    )
    magnitudes = 10.0 ** np.array([0, 0, 0, rng.integers(-8, -4)]) if seed % 2 else np.ones(4)
    shapes = ((1, heads, queries, size), *[(1, 1, keys, size)] * 2, (1, heads, queries, size))
    arrays = [
        (rng.standard_normal(n) * m).astype(NUMPY_DTYPES[dtype])
        for n, m in zip(shapes, magnitudes, strict=True)
    ]
    return Problem(**dict(zip(("query", "key", "value", "upstream"), arrays, strict=True)))


def largest_margins(run: Run, problem: Problem) -> dict[str, float]:
    run.begin_example()
    exact, largest = run.exact_gradients(problem), {}
    for name, got in run.gradients(problem).items():
        with np.errstate(divide="ignore", invalid="ignore"):
            margins = np.where(got.value == exact[name], 0.0, np.abs(got.value - exact[name]) / got.errors)
        largest[name] = float(margins.max(initial=0.0))
    return largest


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("function", [bare, looped])
def test_a_bare_torch_kernel_holds_where_heads_share_a_key(function, dtype: str) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("torch")
    implementation = describe(function, arrays="torch", dtypes=(dtype,))
    run = Run(implementation, "cpu", dtype, precision=Precision.eager(dtype))
    margins = [largest_margins(run, shared_key_problem(seed, dtype)) for seed in range(150)]
    worst = {name: max(m[name] for m in margins) for name in margins[0]}
    assert max(worst.values()) <= 1, worst


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("function", "queries"),
    [(with_einsum, (1, 8, 17)), (with_scaled_queries, (1, 8, 17)), (for_one_query, (1,))],
)
def test_what_is_stored_before_a_sum_may_be_subnormal(function, queries, dtype: str) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("torch")
    implementation = describe(function, arrays="torch", dtypes=(dtype,))
    run = Run(implementation, "cpu", dtype, precision=Precision.eager(dtype))
    problems = [vector_problem(seed, dtype, queries) for seed in range(200)]
    worst = max(max(largest_margins(run, problem).values()) for problem in problems)
    assert worst <= 1
    for problem in problems:
        run.begin_example()
        got, exact = run(problem), run.exact(problem)
        assert np.all(np.abs(got.value - exact) <= got.errors)


def test_each_stored_part_may_lose_half_the_smallest_number() -> None:
    """Weights of a half, the smallest upstream gradient for both heads: each part becomes zero, their sum is it."""
    smallest = 2.0**-24
    rows = Bounded(np.full((2, 1, 1), 0.5), 0.0, Precision.eager("float16"))
    columns = Bounded(np.full((2, 1, 1), smallest), 0.0, Precision.eager("float16"))
    total = np.sum(rows @ columns, axis=0)
    assert total.value[0, 0] == smallest <= total.error[0, 0]
    alone = np.sum(rows[:1] @ columns[:1], axis=0)
    assert alone.error[0, 0] < 0.51 * smallest


@pytest.mark.parametrize("dtype", HALF)
def test_a_sum_of_products_is_a_long_product_unless_its_parts_are_stored(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 5, 6))
    fused = Precision.fused(dtype)
    unit = FORMATS[dtype].unit
    sums = {}
    for precision in (fused, Precision.eager(dtype)):
        left, right = (Bounded(x, np.zeros(x.shape), precision, unit) for x in (a, b))
        joined = (np.concatenate(list(a), axis=-1), np.concatenate(list(b), axis=-2))
        long_left, long_right = (Bounded(x, np.zeros(x.shape), precision, unit) for x in joined)
        sums[precision] = np.sum(left @ right, axis=0), long_left @ long_right
    (total, long), (stored, stored_long) = sums.values()
    np.testing.assert_allclose(total.errors, long.errors, rtol=1e-12)
    # Three parts, and the sum of the first two, which is a result as well.
    parts = np.abs(a @ b).sum(0)
    added = stored.errors - stored_long.errors
    assert np.all(added >= 2 * unit * parts)
    assert np.all(
        added <= 2 * unit * parts * (1 + 8 * unit) + 4 * unit * long.errors + 8 * FORMATS[dtype].tiny
    )
