"""What a query that sees no key gets, from each option that hides keys and from two of them together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from qkverify.contract import empty_rows, mask_forms
from qkverify.probes import shared_empty_rows
from qkverify.probes.small_problems import answer, is_mean, small_problem
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run


def value_of_empty_rows(run: Run) -> str | None:
    """A row is hidden from every key, by each of the ways that are offered, and by two of them together."""
    probed = {way: answer(partial(_empty_row, way), run) for way in empty_rows.WAYS if run.offers(way)}
    values = {way: value for way, value in probed.items() if value}
    apart = shared_empty_rows.differing(run, probed, partial(small_problem, run, queries=3, keys=3))
    return empty_rows.joined({**values, **dict.fromkeys(apart, empty_rows.UNDECIDED)}) or None


# One query at least sees no key; and two keys tell a mean from a copy.
HIDDEN: Mapping[str, Mapping[str, Any]] = {
    "mask": {"mask": np.array([[[[True] * 3, [False] * 3]]])},
    "bias": {"bias": np.array([[[[0.0] * 3, [-np.inf] * 3]]])},
    "key_lengths": {"key_lengths": np.array([0], np.int32)},
    "causal": {"causal": True, "queries": 3, "keys": 2},
    "window": {"window": (0, 0), "queries": 3, "keys": 2},
}


def _empty_row(way: str, run: Run) -> str | None:
    """What a row that sees no key gets; None where this way hides none, or the sizes that it takes are refused."""
    hidden = dict(HIDDEN[way])
    if way in hidden and "Q" not in mask_forms.axes_of(run.implementation.mask_form):
        hidden[way] = hidden[way][:, :, 1:]  # all rows alike
    if way in ("mask", "bias") and run.implementation.accepts({"Q": 2, "K": 3}):  # as many queries as keys
        hidden["queries"] = 3
        if hidden[way].shape[2] > 1:
            hidden[way] = np.concatenate([hidden[way][:, :, :1], hidden[way]], axis=2)
    if way == "bias":
        hidden["bias"] = hidden["bias"].astype(run.numpy_dtype)
    problem = small_problem(run, causal_alignment=run.semantics["causal_alignment"], **hidden)
    rows = np.flatnonzero(~problem.some_visible[0, 0])
    if not rows.size or run.implementation.accepts(problem.sizes) is not None:
        return None
    row = int(rows[-1])
    output = float(run.values(problem)[0, 0, row, 0].astype(np.float64))
    if np.isnan(output) or output == 0:
        return "nan" if np.isnan(output) else "zero"
    if not all(_mean_at(scores, problem, row, run) for scores in (1.0, 2.0**12)):
        return empty_rows.UNDECIDED
    return answer(partial(_even_row, hidden, row), run) or "uniform"


def _mean_at(score: float, problem: Problem, row: int, run: Run) -> bool:
    """Whether such a row gets the mean of all values also where the scores differ by so much: where a finite number is added to
    hidden scores, what is left of these still counts."""
    root = np.sqrt(score)
    steps = np.resize([0.0, root, -root], problem.key.shape[2])[:, None]
    query = np.full(problem.query.shape, root, problem.query.dtype)
    key = np.broadcast_to(steps, problem.key.shape).astype(problem.key.dtype)
    output = float(run.values(problem.replace(query=query, key=key))[0, 0, row, 0].astype(np.float64))
    return is_mean(output, problem.value[0, 0, :, 0])


def _even_row(hidden: Mapping[str, Any], row: int, run: Run) -> str:
    """Whether such a row passes gradients on, as it does where what hides a key was added to its score."""
    if not run.offers("gradients"):
        return "uniform"
    problem = small_problem(run, seed=2, **hidden)
    upstream = np.random.default_rng(3).standard_normal((*problem.query.shape[:3], problem.sizes["E"]))
    gradients = run.gradient_values(problem.replace(upstream=upstream.astype(run.numpy_dtype)))
    return "uniform with gradients" if gradients["query"][0, 0, row].any() else "uniform"
