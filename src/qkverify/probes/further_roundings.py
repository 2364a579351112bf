"""Roundings that some kernels make besides those of their precision model, found out of attention in half precision.

A fused kernel may store the gradients of query heads that share a key before it adds them (FlashAttention-2), sum the weights of
a row after they are rounded (FlashInfer), or store the results of splits of the keys before it merges them (cascade and ring
attention). Code that rounds every operation may differentiate the softmax in steps. None of these is assumed: one is believed
where the bounds without it do not hold, and those with it do.

Each shows rarely in random numbers. So of many problems, drawn as a few numbers each, those are taken in which that rounding goes
farthest by a plain simulation in float64. The simulation chooses problems, nothing else: what is judged is the bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import FORMATS
from qkverify.runs.run import Run

DRAWN, KEPT = 40_000, 8
KEYS, HEADS = 64, 4
FAR = 40.0  # e^-40 is nothing beside 1 in half precision
Array = np.ndarray


def of_output(run: Run, size: int) -> Iterator[tuple[str, str, list[Problem]]]:
    """Convention, value, and the problems in which it shows, of heads of a size."""
    yield "row_sum", "rounded", opposite_roundings(run, size)
    yield "split_results", "stored", two_ends(run, size)


def of_gradients(run: Run, size: int) -> Iterator[tuple[str, str, list[Problem]]]:
    """Likewise; nothing where heads cannot share a key."""
    sizes = {"B": 1, "H": HEADS, "G": 1, "Q": 1, "K": 2, "D": size, "E": size}
    if run.implementation.accepts(sizes) is None:
        yield "head_gradients", "stored", [*vanishing_parts(run, size), *rounded_parts(run, size)]


def of_steps(run: Run, size: int) -> Iterator[tuple[str, str, list[Problem]]]:
    """Likewise, of code that rounds operation by operation."""
    yield "softmax_gradient", "steps", [*collecting_maxima(run, size), *vanishing_quotients(run, size)]


def collecting_maxima(run: Run, size: int) -> list[Problem]:
    """One key is a little above many that are alike, and so are all values: the gradients by the scores are zero but for
    roundings, which are alike as well. Their sum is found at the largest score if the maximum is differentiated."""
    rng, key = np.random.default_rng(3), np.where(np.arange(KEYS) == 0, 0.5, 0.25)
    problems = []
    for query in rng.uniform(0.5, 2.0, KEPT):
        upstream, value = rng.uniform(0.5, 2.0, (2, 1, 1, 1, size)).astype(run.numpy_dtype)
        problem = _one_head(run, query, key, np.ones(KEYS), size)
        problems.append(problem.replace(value=np.repeat(value, KEYS, 2), upstream=upstream))
    return problems


def vanishing_quotients(run: Run, size: int) -> list[Problem]:
    """Equal weights, and upstream gradients of a few of the smallest numbers: those vanish if they are divided by the sum of
    the exponentials."""
    smallest, problems = 2 * FORMATS[run.dtype].tiny, []
    for share in (0.25, 0.375, 0.45):
        problem = _one_head(run, 0.0, np.zeros(KEYS), np.ones(KEYS), size)
        shape = (1, 1, HEADS, size)
        upstream = np.full(shape, share * KEYS * smallest).astype(run.numpy_dtype)
        problems.append(problem.replace(query=np.zeros(shape, run.numpy_dtype), upstream=upstream))
    return problems


def opposite_roundings(run: Run, size: int) -> list[Problem]:
    """Few keys of one score, whose values are ones, and many of another, whose values are zeros: the weights of the two are
    rounded in opposite directions. A key of score zero, the largest, stands in every tile."""
    rng, at = np.random.default_rng(0), np.arange(KEYS)
    query = _rounded(run, rng.uniform(0.5, 1.0, DRAWN))
    few, many = _rounded(run, -rng.uniform(0.5, 2.0, (2, DRAWN)) * size**0.5)
    first, second = (np.exp(query * x * size**-0.5) for x in (few, many))
    largest, ones = at % 16 == 0, at % 11 == 1
    counts = ones.sum(), (~largest & ~ones).sum()

    def shares(a: Array, b: Array) -> Array:
        return np.asarray(counts[0] * a / (largest.sum() + counts[0] * a + counts[1] * b))

    got = _rounded(run, shares(_rounded(run, first), _rounded(run, second)))
    taken = _farthest(got, shares(first, second))
    keys = (np.where(largest, 0.0, np.where(ones, few[i], many[i])) for i in taken)
    return [_one_head(run, query[i], key, ones, size) for i, key in zip(taken, keys, strict=True)]


def two_ends(run: Run, size: int) -> list[Problem]:
    """Two keys at either end count: wherever the keys are split, the results of two pairs are merged. They nearly cancel, so that
    a sum of rounded weights, whose error is relative to the whole result, is no explanation."""
    rng, ends = np.random.default_rng(1), [0, 1, -2, -1]
    query = _rounded(run, rng.uniform(0.5, 1.0, DRAWN))
    keys = _rounded(run, rng.uniform(-1.0, 1.0, (4, DRAWN)) * size**0.5)
    values = _rounded(run, rng.uniform(0.5, 2.0, (4, DRAWN)))
    values = _rounded(run, values * np.array([1 / 16, 1, -1 / 16, -1])[:, None])
    weights = np.exp(query * keys * size**-0.5)
    merged = np.zeros(DRAWN)
    for pair in ([0, 1], [2, 3]):
        largest, total = weights[pair].max(0), weights[pair].sum(0)
        result = (_rounded(run, weights[pair] / largest) * values[pair]).sum(0) * largest / total
        merged += _rounded(run, result) * total / weights.sum(0)
    exact = (weights * values).sum(0) / weights.sum(0)
    size_of_terms = (weights * np.abs(values)).sum(0) / weights.sum(0)
    taken = _farthest(_rounded(run, merged), exact, size_of_terms + 2 * np.abs(exact))
    problems = []
    for i in taken:
        key, value = np.full(KEYS, -2 * FAR * size**0.5), np.zeros(KEYS)
        key[ends], value[ends] = keys[:, i], values[:, i]
        problems.append(_one_head(run, query[i], key, value, size))
    return problems


def rounded_parts(run: Run, size: int) -> list[Problem]:
    """One query a head, and two keys that the heads share: three heads are alike, so that their parts are rounded alike."""
    rng, alike = np.random.default_rng(2), np.array([0, 0, 0, 1])
    query = _rounded(run, rng.uniform(-1.0, 1.0, (2, DRAWN)) * size**0.5)
    above = _rounded(run, rng.uniform(0.5, 2.0, (2, DRAWN)))
    weights = 1 / (1 + np.exp(-query * size**-0.5))  # of the second key, which is one; the first is zero
    parts = _rounded(run, _rounded(run, weights) * above)
    taken = _farthest(_rounded(run, parts[alike].sum(0)), (weights * above)[alike].sum(0))
    return [_shared_key(run, query[alike, i], above[alike, i], size) for i in taken]


def vanishing_parts(run: Run, size: int) -> list[Problem]:
    """Upstream gradients of the smallest number and weights of a half, of which the part of each head may become zero."""
    smallest = 2 * FORMATS[run.dtype].tiny
    return [_shared_key(run, np.zeros(HEADS), np.full(HEADS, n * smallest), size) for n in (1, 3, 5)]


def _farthest(got: Array, exact: Array, scale: Array | None = None) -> Array:
    """The drawn problems of the largest errors relative to `scale`, or to the exact number."""
    return np.argsort(-np.abs(got - exact) / (exact if scale is None else scale))[:KEPT]


def _rounded(run: Run, x: Array) -> Array:
    return np.asarray(x, np.float64).astype(run.numpy_dtype).astype(np.float64)


def _one_head(run: Run, query: float, key: Array, value: Array, size: int) -> Problem:
    """A query and keys (K,) of one component that is not zero, and values (K,) that are alike in all components."""
    rows = np.zeros((KEYS + 1, size), run.numpy_dtype)
    rows[:, 0] = np.append(query, key)
    values = np.repeat(value[:, None], size, 1).astype(run.numpy_dtype)
    return Problem(query=rows[None, None, :1], key=rows[None, None, 1:], value=values[None, None])


def _shared_key(run: Run, query: Array, above: Array, size: int) -> Problem:
    """Queries (H,) and upstream gradients (H,), for two keys and values: zeros and ones."""
    rows = np.zeros((HEADS + 2, size), run.numpy_dtype)
    rows[:, 0] = np.append(query, [0.0, 1.0])
    queries, keys = rows[None, :HEADS, None], rows[None, None, HEADS:]
    upstream = np.repeat(above[:, None], size, 1).astype(run.numpy_dtype)[None, :, None]
    return Problem(query=queries, key=keys, value=np.array(keys), upstream=upstream)
