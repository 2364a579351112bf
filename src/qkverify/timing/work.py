"""How much there is to do: operations and bytes of an attention call, counted from what is visible.

Operations. A visible (query, key) pair costs one dot product of size D for its score and one multiply-add of
size E for its value: 2 (D + E), a multiply-add counted as two. Backward, as flash kernels do it, is five
products per pair: the scores again (2 D), dP = dO V' (2 E), dV = P' dO (2 E), dQ = dS K (2 D), dK = dS' Q
(2 D), together 6 D + 4 E: 2.5 times forward when D = E, the convention of the FlashAttention papers.
Exponentials are not counted, and a kernel that computes invisible pairs gets no credit for them.

Bytes. Every input number that any visible pair needs, read once, and every output number, written once: the
traffic of an ideal kernel with an endless cache, in which a backward pass finds what forward read. Key and
value rows that no query sees are not counted as read, nor are the queries (and their upstream gradients) that
see no key. What says what is visible is read whole: a mask, a bias, key lengths; so are ALiBi's slopes and
sinks. An axis of stride zero is one row of memory, however long it claims to be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.results import Direction


class Work(NamedTuple):
    """Floating-point operations and unique bytes of one call."""

    flops: int
    bytes: int


class Visibility(NamedTuple):
    """Visible (query, key) `pairs` and `queries` that see any key, over batch and query heads; `keys` that are seen by
    any query, over batch and kv heads."""

    pairs: int
    queries: int
    keys: int


# Inputs that are read whole, whatever they hide.
SELECTING = ("mask", "bias", "key_lengths", "alibi_slopes", "sinks")
LSE_BYTES = 4  # at least float32, in half precision too


def work(problem: Problem, direction: Direction) -> Work:
    """The work of one call; "forward+backward" counts both passes.

    "backward" alone moves as many bytes as both: it reads the output that forward writes.
    """
    s, visible = problem.sizes, visibility(problem)
    item, width = problem.query.dtype.itemsize, s["D"] + s["E"]
    rows = s["B"] * s["H"] * s["Q"]
    flops = 0 if direction == "backward" else visible.pairs * 2 * width
    numbers = visible.queries * s["D"] + visible.keys * width + rows * s["E"]
    if direction != "forward":
        flops += visible.pairs * (6 * s["D"] + 4 * s["E"])
        # dO read; dQ, dK and dV written whole: rows that see nothing, or that nobody sees, get zeros
        numbers += visible.queries * s["E"] + rows * s["D"] + s["B"] * s["G"] * s["K"] * width
    extras = sum(_unique_bytes(getattr(problem, name)) for name in SELECTING)
    return Work(flops, numbers * item + extras + (rows * max(item, LSE_BYTES) if problem.return_lse else 0))


def visibility(problem: Problem) -> Visibility:
    """Counted from ranges of keys, in O(Q + K) memory, unless a mask or a bias says more than ranges can."""
    if problem.mask is not None or problem.bias is not None:
        return _from_mask(problem.visible, problem.sizes["G"])
    s = problem.sizes
    first, stop = key_ranges(problem)
    lengths = np.full(s["B"], s["K"]) if problem.key_lengths is None else np.asarray(problem.key_lengths)
    pairs = queries = keys = 0
    for length, times in zip(*np.unique(lengths, return_counts=True), strict=True):
        ends = np.minimum(stop, length)
        pairs += int(np.maximum(ends - first, 0).sum()) * int(times)
        queries += int((ends > first).sum()) * int(times)
        keys += _covered(first, ends, s["K"]) * int(times)
    return Visibility(pairs * s["H"], queries * s["H"], keys * s["G"])


def key_ranges(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """For each query the first key it sees and the key after the last, (Q,) each, before key lengths."""
    queries, keys = problem.sizes["Q"], problem.sizes["K"]
    position = np.arange(queries) + (keys - queries if problem.causal_alignment == "bottom-right" else 0)
    left, right = problem.window or (None, None)
    first = np.zeros(queries, int) if left is None else position - left
    stop = np.full(queries, keys) if right is None else position + right + 1
    if problem.causal:
        stop = np.minimum(stop, position + 1)
    return np.clip(first, 0, keys), np.clip(stop, 0, keys)


def _covered(first: np.ndarray, stop: np.ndarray, keys: int) -> int:
    """How many keys lie in at least one of the ranges."""
    nonempty = stop > first
    steps = np.zeros(keys + 1, int)
    np.add.at(steps, first[nonempty], 1)
    np.add.at(steps, stop[nonempty], -1)
    return int((np.cumsum(steps)[:keys] > 0).sum())


def _from_mask(visible: np.ndarray, kv_heads: int) -> Visibility:
    batch, heads, queries, keys = visible.shape
    groups = visible.reshape(batch, kv_heads, heads // max(kv_heads, 1) * queries, keys)
    return Visibility(int(visible.sum()), int(visible.any(axis=-1).sum()), int(groups.any(axis=2).sum()))


def _unique_bytes(array: np.ndarray | None) -> int:
    """The memory that an array is a view of, as far as strides of zero tell."""
    if array is None:
        return 0
    lengths = (length for length, step in zip(array.shape, array.strides, strict=True) if step or not length)
    return int(math.prod(lengths) * array.itemsize)
