"""The work of a call equals what explicit loops count, pair by pair and number by number.

The loops read the options by their definition in `contract` and share no code with the engine: neither the
reference's masks nor its arithmetic of positions.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qkverify.problem.attention_problem import Problem
from qkverify.timing.work import Work, visibility, work

STORED = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
LONGEST = 6


@st.composite
def shown(draw: st.DrawFn, sizes: dict[str, int]) -> tuple[int, ...]:
    """A shape that broadcasts to (B,H,Q,K), of two to four axes."""
    full = [sizes[letter] for letter in "BHQK"]
    shape = tuple(draw(st.sampled_from([size, 1])) if size else size for size in full)
    return shape[draw(st.integers(0, 2)) :]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Every way to say what is visible, grouped heads and empty sizes among them."""
    batch, kv_heads, group = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(1, 3))
    queries, keys = draw(st.integers(0, LONGEST)), draw(st.integers(0, LONGEST))
    size, value_size = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    heads, stored = kv_heads * group, draw(st.sampled_from(STORED))
    sizes = {"B": batch, "H": heads, "Q": queries, "K": keys}
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    side = st.none() | st.integers(0, LONGEST + 1)
    lengths = draw(st.none() | st.lists(st.integers(0, keys), min_size=batch, max_size=batch))
    mask, bias = (draw(st.none() | shown(sizes)) for _ in range(2))
    return Problem(
        query=np.zeros((batch, heads, queries, size), stored),
        key=np.zeros((batch, kv_heads, keys, size), stored),
        value=np.zeros((batch, kv_heads, keys, value_size), stored),
        causal=draw(st.booleans()),
        window=draw(st.none() | st.tuples(side, side)),
        key_lengths=None if lengths is None else np.array(lengths, np.int32),
        mask=None if mask is None else numbers.random(mask) < 0.5,
        bias=None
        if bias is None
        else np.where(numbers.random(bias) < 0.3, -np.inf, numbers.normal(size=bias)).astype(stored),
        alibi_slopes=np.ones(heads, np.float32) if draw(st.booleans()) else None,
        sinks=np.zeros(heads, stored) if draw(st.booleans()) else None,
        return_lse=draw(st.booleans()),
        causal_alignment=draw(st.sampled_from(["bottom-right", "top-left"])),
    )


def sees(problem: Problem, b: int, h: int, i: int, j: int) -> bool:
    """Whether query i of head h sees key j, one condition after the other."""
    sizes = problem.sizes
    at = i + sizes["K"] - sizes["Q"] if problem.causal_alignment == "bottom-right" else i
    if problem.causal and j > at:
        return False
    if problem.window is not None:
        left, right = problem.window
        if (left is not None and j < at - left) or (right is not None and j > at + right):
            return False
    if problem.key_lengths is not None and j >= problem.key_lengths[b]:
        return False
    if problem.mask is not None and not element(problem.mask, b, h, i, j):
        return False
    return problem.bias is None or float(element(problem.bias, b, h, i, j)) != -math.inf


def element(array: np.ndarray, *place: int) -> Any:
    """The element that broadcasting puts at a place: an axis of length one stands for all."""
    places = zip(array.shape, place[len(place) - array.ndim :], strict=True)
    return array[tuple(0 if length == 1 else at for length, at in places)]


def counted(problem: Problem) -> tuple[Work, Work]:
    """Forward, and forward+backward: each multiply-add as it would be done, each number as it is touched."""
    s = problem.sizes
    read, flops, more = set[tuple[Any, ...]](), 0, 0
    for b in range(s["B"]):
        for h in range(s["H"]):
            for i in range(s["Q"]):
                for j in range(s["K"]):
                    if not sees(problem, b, h, i, j):
                        continue
                    g = h // (s["H"] // s["G"])
                    for d in range(s["D"]):
                        flops += 2  # score += query key
                        more += 2 + 2 + 2  # the score again, dQ += dS key, dK += dS query
                        read |= {("query", b, h, i, d), ("key", b, g, j, d)}
                    for e in range(s["E"]):
                        flops += 2  # output += weight value
                        more += 2 + 2  # dP += dO value, dV += weight dO
                        read |= {("value", b, g, j, e), ("dO", b, h, i, e)}
    upstream = sum(name == "dO" for name, *_ in read)
    item, inputs = problem.query.dtype.itemsize, len(read) - upstream
    for array in (problem.mask, problem.bias, problem.key_lengths, problem.alibi_slopes, problem.sinks):
        read_whole = 0 if array is None else array.size * array.dtype.itemsize
        inputs += read_whole / item
    rows = s["B"] * s["H"] * s["Q"]
    output = rows * s["E"] * item + (rows * max(item, 4) if problem.return_lse else 0)
    gradients = rows * s["D"] + s["B"] * s["G"] * s["K"] * (s["D"] + s["E"])
    forward = Work(flops, round(inputs * item) + output)
    return forward, Work(flops + more, forward.bytes + (upstream + gradients) * item)


ONE_KEY = np.zeros((1, 1, 1, 2))
EMPTY_ROWS = Problem(query=np.zeros((1, 1, 3, 2)), key=ONE_KEY, value=ONE_KEY, causal=True)


@settings(max_examples=1000, deadline=None)
@given(problems())
@example(EMPTY_ROWS)  # queries 0 and 1 see nothing: their rows need not be read
def test_work_equals_explicit_loops(problem: Problem) -> None:
    forward, both = counted(problem)
    assert work(problem, "forward") == forward
    assert work(problem, "forward+backward") == both


@settings(max_examples=300, deadline=None)
@given(problems())
def test_counting_by_ranges_agrees_with_counting_by_the_mask(problem: Problem) -> None:
    ranges = problem.replace(mask=None, bias=None)
    shape = tuple(ranges.sizes[letter] for letter in "BHQK")
    assert visibility(ranges) == visibility(ranges.replace(mask=np.ones(shape, bool)))


def test_a_mask_that_is_broadcast_by_strides_counts_once() -> None:
    row = np.array([True, False, True])
    sizes = {"query": (2, 2, 4, 2), "key": (2, 2, 3, 2), "value": (2, 2, 3, 2)}
    problem = Problem(**{name: np.zeros(shape, np.float32) for name, shape in sizes.items()}, mask=row)  # type: ignore[arg-type]
    wide = problem.replace(mask=np.broadcast_to(row, (2, 2, 4, 3)))
    assert work(wide, "forward") == work(problem, "forward")


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_the_arrays_of_a_long_case_are_not_needed_to_count_it(direction: Any) -> None:
    zero = np.zeros((), np.float16)
    long = {"query": (1, 8, 2**17, 64), "key": (1, 1, 2**17, 64), "value": (1, 1, 2**17, 64)}
    arrays = {name: np.broadcast_to(zero, shape) for name, shape in long.items()}
    n = 2**17
    pairs = 8 * n * (n + 1) // 2
    amount = work(Problem(**arrays, causal=True), direction)  # type: ignore[arg-type]
    assert amount.flops == pairs * (256 if direction == "forward" else 256 + 640)
