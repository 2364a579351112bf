"""Whether an operation that attends has an exponential of half precision that is wrong beyond its rounding.

One key alone has a score other than zero, so that the output is its weight, which a right kernel rounds to known bits: when it is
stored, and before it is divided by the sum or not, before it is summed or not, or as part of a split of the keys. What is wrong
beside that looks like noise. But a polynomial between powers of two is wrong by the same curve in each, and that shows in the
curve's Fourier coefficients.

What is ugly: each operation takes its queries and keys in another form, so each has a few lines of its own here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import LN_2
from qkverify.runs.run import Run

QUERIES = 1 << 15
KEYS = 32  # a vector of exponentials, or two
NEW = 64  # tokens of one call, where each is a key as well
HEAD = 8  # room in a token of multi-head attention for what its query, key and value are made of
WAVES = np.arange(1, 5)  # of a curve that repeats with every power of two
SPLITS = (4, 8, 16)  # keys of a split that is stored by itself
SURELY = 5.0  # about one for noise

Array = np.ndarray


@dataclass(frozen=True)
class ProbeInput:
    """Queries (n,D), the key and the value (D,) beside which all others are zero."""

    query: Array
    key: Array
    value: Array

    @property
    def scores(self) -> Array:
        """Of each query with that key, (n,), float64."""
        products = self.query.astype(np.float64) @ self.key.astype(np.float64)
        return np.asarray(products * self.key.size**-0.5)

    def kept(self, rows: int) -> list[Array]:
        """Keys and values, (rows,D) each: the one and zeros."""
        arrays = np.zeros((2, rows, self.key.size), self.key.dtype)
        arrays[0, 0], arrays[1, 0] = self.key, self.value
        return list(arrays)

    def in_steps(self) -> Array:
        """(B,1,NEW,D)"""
        return self.query.reshape(-1, 1, NEW, self.key.size)


Weights = tuple[Array, Any]  # of the one key, (n,), and how many other keys each query sees


def is_fast(run: Run, size: int) -> bool:
    """Whether it shows, in the weights of heads of this size."""
    operation = run.implementation.operation
    probe_input = asked_of(run, HEAD if operation == "multi_head_attention" else max(size, 2))
    weights, others = OF[operation](run, probe_input)
    got, scores = weights.astype(np.float64), probe_input.scores

    def stored(x: Array) -> Array:
        return x.astype(run.numpy_dtype).astype(np.float64)

    exact = np.exp(scores)
    total = exact + others
    waves = np.exp(2j * np.pi * WAVES[:, None] * scores / LN_2)  # (WAVES, QUERIES)

    def beyond_noise(right: Array) -> float:
        error = got / right - 1
        error -= error.mean()
        return float((np.abs(waves @ error) ** 2).mean() / max((error**2).sum(), np.finfo(float).tiny))

    right = [exact / total, stored(exact) / total, stored(exact) / (stored(exact) + others)]
    for keys in SPLITS:  # the key's own split is stored, and merged with the others
        share = (exact + keys - 1) / total
        right.append(stored(stored(exact) / (exact + keys - 1)) * share)
    return min(beyond_noise(stored(weight)) for weight in right) > SURELY


def asked_of(run: Run, size: int) -> ProbeInput:
    rng, dtype = np.random.default_rng(0), run.numpy_dtype
    query, (key, value) = np.zeros((QUERIES, size), dtype), np.zeros((2, size), dtype)
    query[:, 0] = rng.uniform(-4, 0, QUERIES) * size**0.5
    query[:, 1] = rng.uniform(-1, 1, QUERIES)
    key[:2], value[0] = (1, 2.0**-6), 1  # scores between two neighbours of the dtype
    return ProbeInput(query, key, value)


def _attention(run: Run, probe_input: ProbeInput) -> Weights:
    key, value = (x[None, None] for x in probe_input.kept(KEYS))
    return run.values(Problem(query=probe_input.query[None, None], key=key, value=value))[
        0, 0, :, 0
    ], KEYS - 1


def _packed(run: Run, probe_input: ProbeInput) -> Weights:
    query, *kept = (x[:, None] for x in (probe_input.query, *probe_input.kept(KEYS)))
    starts = [np.array([0, n], np.int32) for n in (QUERIES, KEYS)]
    longest = {
        name: n
        for name, n in (("longest_query", QUERIES), ("longest_key", KEYS))
        if run.offers_parameter(name)
    }
    return run.call(query, *kept, *starts, shape=query.shape, **longest)[:, 0, 0], KEYS - 1


def _cached(run: Run, probe_input: ProbeInput) -> Weights:
    query = probe_input.in_steps()
    new = np.zeros_like(query)
    caches = [np.repeat(x[None, None], len(query), axis=0) for x in probe_input.kept(KEYS + NEW)]
    lengths = np.full(len(query), KEYS, np.int32)
    output, _ = run.call_updating(query, new, new, *caches, lengths, updated=3, shape=query.shape)
    return output[..., 0].reshape(-1), _others(len(query))


def _paged(run: Run, probe_input: ProbeInput) -> Weights:
    query = probe_input.in_steps()
    pages = [x.reshape(-1, KEYS, 1, x.shape[1]) for x in probe_input.kept(KEYS + NEW)]
    table = np.repeat(np.arange(len(pages[0]), dtype=np.int32)[None], len(query), axis=0)
    lengths = np.full(len(query), KEYS + NEW, np.int32)
    return run.call(query, *pages, table, lengths, shape=query.shape)[..., 0].reshape(-1), _others(len(query))


def _others(entries: int) -> Array:
    """Each token sees what was held before, those before it in its call and itself."""
    return np.tile(KEYS + np.arange(NEW), entries)


def _multi_head(run: Run, probe_input: ProbeInput) -> Weights:
    """Tokens that hold the two numbers of their query, and those of the key and the value: matrices of ones pick them out."""
    x = np.zeros((QUERIES // KEYS, KEYS, HEAD), probe_input.query.dtype)
    x[..., :2] = probe_input.query[:, :2].reshape(*x.shape[:2], 2)
    x[:, 0, 2:4], x[:, 0, 4] = probe_input.key[:2], probe_input.value[0]
    w_q, w_k, w_v = np.zeros((3, HEAD, HEAD), x.dtype)
    w_q[[0, 1], [0, 1]] = w_k[[2, 3], [0, 1]] = w_v[4, 0] = 1
    output = run.call(x, w_q, w_k, w_v, np.eye(HEAD, dtype=x.dtype), shape=x.shape, heads=1)
    return output[..., 0].reshape(-1), KEYS - 1


OF: Mapping[str, Callable[[Run, ProbeInput], Weights]] = {
    "attention": _attention, "packed_attention": _packed, "cached_attention": _cached, "paged_attention": _paged,
    "multi_head_attention": _multi_head,
}  # fmt: skip
