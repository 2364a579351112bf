"""Checking the output of a timed call: sampled rows of a large problem, within the derived bound.

The laws verify on small problems. A kernel may still take another path at the size that is timed, so what it
returned there is checked too: the reference computes only some rows of the problem (of all heads, over all
keys), or for gradients of keys and values one head whole, and the bound is derived as everywhere else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from qkverify.contract.axes import to_contract
from qkverify.problem.attention_problem import Problem
from qkverify.results import Direction
from qkverify.rounding import Bounded, Precision
from qkverify.runs.run import Run
from qkverify.timing.work import key_ranges

SCORES = 2**20  # scores that the reference computes for sampled rows; of all rows, where there are no more
FEWEST_ROWS, MOST_SCORES = (
    64,
    2**22,
)  # so many rows in any case, if the reference has no more scores than that to compute
HEAD_SCORES = 2**20  # scores of one head group up to which the gradients of its keys and values are checked
SPOT_ROWS = 4  # of one head, of a call out of the middle of the timing
SECRET = secrets.randbits(64)  # of this process: a kernel that knew the rows could compute these alone
# options of a problem that its rows keep by themselves
SAMPLED = {"causal", "window", "mask", "key_lengths", "scale", "softcap"}


def margin_of(
    run: Run, problem: Problem, output: Any, direction: Direction, *, seed: int = 0
) -> float | None:
    """The largest |got - exact| / bound over what is sampled of `output`, which `run.callable` returned.

    None where rows of such a problem cannot be computed by themselves (biases that depend on positions).
    """
    if not problem.options.keys() <= SAMPLED:
        return None
    sample = sample_of(problem, seed)
    if direction == "forward":
        first = output[0] if isinstance(output, tuple) else output
        return margin(received(run, first)[:, :, sample.rows], sample.exact_rows(run))
    grads = gradients(run, output)
    by_rows = sample.exact_row_gradients(run)
    margins = [margin(grads["query"][:, :, sample.rows], by_rows["query"])]
    if sample.rows_are_all:
        margins += [margin(grads[name], by_rows[name]) for name in ("key", "value")]
    elif sample.head is not None:
        exact = sample.exact_head_gradients(run)
        margins += [margin(grads[name][sample.head], exact[name]) for name in ("key", "value")]
    return max(margins)


class SampledRows:
    """What is sampled of one problem, and what the reference says there, once for all runs judged alike.

    `rows` are query rows of every head; `head` is one batch entry and key/value head, None where it is too
    large. `rows_are_all` says whether nothing comes from above to any other row (see `judged`): then these rows
    give the gradients of all keys and values.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        s, numbers = problem.sizes, _drawn_by(seed)
        self.rows = _sample_rows(problem, numbers)
        self._row_part = part_of(problem, rows=self.rows)
        self.head: tuple[slice, slice] | None = None
        self.rows_are_all = _others_silent(problem, self.rows)
        if s["B"] and s["G"] and problem.group * s["Q"] * s["K"] <= HEAD_SCORES:
            entry, kv_head = int(numbers.integers(s["B"])), int(numbers.integers(s["G"]))
            self.head = slice(entry, entry + 1), slice(kv_head, kv_head + 1)
            self._head_part = part_of(problem, entry=entry, kv_head=kv_head)
        self._known: dict[tuple[str, Precision, str], Any] = {}

    def exact_rows(self, run: Run) -> Bounded:
        exact: Bounded = self._once("rows", run, lambda: run.bound(self._row_part)[0])
        return exact

    def exact_row_gradients(self, run: Run) -> dict[str, Bounded]:
        exact: dict[str, Bounded] = self._once("dQ", run, lambda: run.gradient_bounds(self._row_part))
        return exact

    def exact_head_gradients(self, run: Run) -> dict[str, Bounded]:
        exact: dict[str, Bounded] = self._once("dK, dV", run, lambda: run.gradient_bounds(self._head_part))
        return exact

    def _once(self, what: str, run: Run, compute: Callable[[], Any]) -> Any:
        key = what, run.precision, run.semantics["delta"]
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def judged(problem: Problem, direction: Direction, seed: int) -> Problem:
    """The problem as its gradients can be judged: where a head is too large, no gradient comes from above but to the
    sampled rows, so that the reference need not compute the others."""
    s = problem.sizes
    if direction == "forward" or problem.upstream is None or problem.group * s["Q"] * s["K"] <= HEAD_SCORES:
        return problem
    rows = _sample_rows(problem, _drawn_by(seed))
    upstream = np.zeros_like(problem.upstream)
    upstream[:, :, rows] = problem.upstream[:, :, rows]
    return problem.replace(upstream=upstream)


def _drawn_by(seed: int) -> np.random.Generator:
    return np.random.default_rng([SECRET, seed])


def _others_silent(problem: Problem, rows: np.ndarray) -> bool:
    if problem.upstream is None:
        return False
    heard = (problem.upstream != 0).any(axis=(0, 1, 3))
    heard[rows] = False
    return not heard.any()


@lru_cache(maxsize=4)
def sample_of(problem: Problem, seed: int) -> SampledRows:
    return SampledRows(problem, seed)


def spot_check(run: Run, problem: Problem, output: Any, direction: Direction) -> Callable[[], float | None]:
    """Takes a few rows of one head of an output, drawn now, with what they belong to; gives what tells their margin later.

    None where rows of such a problem cannot be computed by themselves.
    """
    s, numbers = problem.sizes, np.random.default_rng()
    if not problem.options.keys() <= SAMPLED or not (s["B"] and s["G"] and s["Q"]):
        return lambda: None
    rows = np.sort(numbers.choice(s["Q"], min(SPOT_ROWS, s["Q"]), replace=False))
    entry, kv_head = int(numbers.integers(s["B"])), int(numbers.integers(s["G"]))
    part = part_of(problem, rows=rows, entry=entry, kv_head=kv_head)
    heads = slice(kv_head * problem.group, (kv_head + 1) * problem.group)

    def taken(array: np.ndarray) -> np.ndarray:
        return array[entry : entry + 1, heads][:, :, rows].copy()

    got: dict[str, np.ndarray] = {}
    if direction == "forward" or run.implementation.vjp is None:
        first = output if direction == "forward" else output[0]
        got["output"] = taken(received(run, first[0] if isinstance(first, tuple) else first))
    if direction != "forward":
        got["query"] = taken(gradients(run, output)["query"])

    def margin_of_it() -> float:
        margins = [margin(got["output"], run.bound(part)[0])] if "output" in got else []
        margins += [margin(got["query"], run.gradient_bounds(part)["query"])] if "query" in got else []
        return max(margins)

    return margin_of_it


def margin(got: np.ndarray, exact: Bounded) -> float:
    """The largest |got - exact| / bound. Equal numbers (NaN and NaN too) count 0, a wrong NaN is infinite."""
    got = got.astype(np.float64)
    if got.shape != exact.shape:
        return np.inf
    value, bound = exact.value, exact.errors
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.abs(got - value) / bound
    same = (got == value) | (np.isnan(got) & np.isnan(value)) | np.isposinf(bound)
    ratio = np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    return float(ratio.max(initial=0.0))


def part_of(
    problem: Problem, *, rows: np.ndarray | None = None, entry: int | None = None, kv_head: int | None = None
) -> Problem:
    """The same attention for some query rows, or for one batch entry and key/value head."""
    rows = np.arange(problem.sizes["Q"]) if rows is None else rows
    entries = slice(None) if entry is None else slice(entry, entry + 1)
    keys = slice(None) if kv_head is None else slice(kv_head, kv_head + 1)
    group = problem.group
    heads = slice(None) if kv_head is None else slice(kv_head * group, (kv_head + 1) * group)
    visible = visible_rows(problem, rows)
    visible = visible[
        entries if visible.shape[0] > 1 else slice(None), heads if visible.shape[1] > 1 else slice(None)
    ]
    upstream = problem.upstream
    return problem.replace(
        query=problem.query[entries, heads][:, :, rows],
        key=problem.key[entries, keys],
        value=problem.value[entries, keys],
        upstream=None if upstream is None else upstream[entries, heads][:, :, rows],
        mask=visible,
        causal=False,
        window=None,
        key_lengths=None,
        layouts={},
    )


def visible_rows(problem: Problem, rows: np.ndarray) -> np.ndarray:
    """bool (B or 1, H or 1, rows, K): what the given query rows see."""
    if problem.mask is not None:
        return np.asarray(problem.visible[:, :, rows])
    key = np.arange(problem.sizes["K"])
    first, stop = (edge[rows][None, None, :, None] for edge in key_ranges(problem))
    visible = (key >= first) & (key < stop)
    if problem.key_lengths is not None:
        visible = visible & (key < np.asarray(problem.key_lengths)[:, None, None, None])
    return np.asarray(visible)


def _sample_rows(problem: Problem, numbers: np.random.Generator) -> np.ndarray:
    """The first and the last query row, and as many at random as `SCORES` allows; all, where they are no more."""
    s = problem.sizes
    of_a_row = max(1, s["B"] * s["H"] * s["K"])
    count = min(s["Q"], max(2, SCORES // of_a_row, min(FEWEST_ROWS, MOST_SCORES // of_a_row)))
    ends = {0, s["Q"] - 1} if s["Q"] else set()
    return np.array(sorted(ends | set(numbers.choice(s["Q"], count, replace=False).tolist())), dtype=int)


def received(run: Run, native: Any) -> np.ndarray:
    """The contract's layout, in NumPy."""
    return np.asarray(to_contract(run.framework.to_numpy(native), run.implementation.layout))


def gradients(run: Run, output: Any) -> dict[str, np.ndarray]:
    """The gradients of a forward+backward call: from (output, {name: gradient}), or a vjp's own tuple."""
    if run.implementation.vjp is not None:
        return {name: received(run, x) for name, x in zip(("query", "key", "value"), output, strict=True)}
    named: Mapping[str, Any] = output[1]
    return {name: received(run, x) for name, x in named.items()}
