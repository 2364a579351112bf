"""The conventions of attention, each found out by a small problem: `PROBES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.errors import ContractError
from qkverify.probes.rows_without_keys import value_of_empty_rows
from qkverify.probes.small_problems import nearest, small_problem, within
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

HARDLY_A_SCORE = (
    -30_000.0
)  # a number that stands for -inf in float16 is about half of its largest: lower than any score


def _causal_alignment(run: Run) -> str | None:
    if not run.offers("causal"):
        return None
    fewer = {"B": 1, "H": 1, "G": 1, "Q": 2, "K": 3}
    if run.implementation.accepts(fewer) or run.implementation.refuses(fewer, {"causal": True}):
        # The second of three queries sees one of two keys, or both.
        output = run.values(small_problem(run, queries=3, keys=2, causal=True))[0, 0, 1, 0].astype(np.float64)
        return nearest(float(output), {1.0: "bottom-right", 1.5: "top-left"})
    output = run.values(small_problem(run, causal=True))[0, 0, 0, 0].astype(np.float64)
    return nearest(
        float(output), {1.0: "top-left", 1.5: "bottom-right"}
    )  # the first query saw one key, or two


def _masked_values(run: Run) -> str | None:
    """NaN in the last key and value, which no query may see."""
    if run.offers("mask"):
        hidden: dict[str, Any] = {"mask": np.array([[[[True, True, False]]]])}
    elif run.offers("key_lengths"):
        hidden = {"key_lengths": np.array([2], np.int32)}
    elif run.offers("causal"):
        hidden = {"causal": True}
    else:
        return None
    clean = small_problem(run, queries=2 if "causal" not in hidden else 1, **hidden)
    key, value = clean.key.copy(), clean.value.copy()
    key[..., -1, :] = value[..., -1, :] = np.nan
    if "causal" in hidden and run.semantics["causal_alignment"] == "bottom-right":
        clean = small_problem(run, queries=3, causal=True)
        got = run.values(clean.replace(key=key, value=value))[:, :, :2]
    else:
        got = run.values(clean.replace(key=key, value=value))
    return "read" if np.isnan(got.astype(np.float64)).any() else "ignored"


def _deterministic(run: Run) -> str | None:
    problem = small_problem(run, queries=17, keys=33, seed=1)
    first = run.values(problem)
    return "yes" if all(np.array_equal(first, run.values(problem)) for _ in range(3)) else "no"


def _batch_invariant(run: Run) -> str | None:
    problem = small_problem(run, queries=17, keys=33, batch=3, seed=1)
    together = run.values(problem)
    alone = [
        run.values(problem.replace(**{n: getattr(problem, n)[b : b + 1] for n in ("query", "key", "value")}))
        for b in range(3)
    ]
    return "yes" if np.array_equal(together, np.concatenate(alone)) else "no"


def _empty_lse(run: Run) -> str | None:
    if not run.offers("return_lse"):
        return None
    if run.offers("mask"):
        hidden: dict[str, Any] = {"mask": np.zeros((1, 1, 1, 3), bool)}
    elif run.offers("key_lengths"):
        hidden = {"key_lengths": np.array([0], np.int32)}
    else:
        return None
    lse = float(run.outputs(small_problem(run, return_lse=True, **hidden))[1][0, 0, 0])
    return "-inf" if lse == -np.inf else "finite" if lse <= HARDLY_A_SCORE else None


def _lse(run: Run) -> str | None:
    if not run.offers("return_lse"):
        return None
    lse = float(run.outputs(small_problem(run, return_lse=True))[1][0, 0, 0])
    return nearest(lse, {float(np.log(3)): "natural", float(np.log2(3)): "base2"})


def mismatched(problem: Problem, which: str) -> Problem:
    """The problem with a key or value that is too long, too wide, or of twice as many batch entries."""
    changed, axis = MISMATCHES[which]
    return problem.replace(**{n: np.concatenate([getattr(problem, n)] * 2, axis) for n in changed})


MISMATCHES: Mapping[str, tuple[tuple[str, ...], int]] = {
    "value longer": (("value",), 2), "key longer": (("key",), 2), "key wider": (("key",), 3),
    "batches differ": (("key", "value"), 0),
}  # fmt: skip


def _mismatched_sizes(run: Run) -> str | None:
    """ "cut" if an undeclared function leaves out what is too long, wherever it does not raise. Whoever declares an
    implementation has read that it must raise, or declares otherwise."""
    if run.implementation.declared or run.implementation.compiles:
        return None
    problem, returned = small_problem(run, keys=3, batch=2, seed=4), 0
    if problem.sizes["D"] == 1:
        wider = {name: np.concatenate([getattr(problem, name)] * 2, 3) for name in ("query", "key", "value")}
        problem = problem.replace(**wider)
    for which in MISMATCHES:
        try:
            got = run.values(mismatched(problem, which))
        except ContractError:
            return None
        except Exception:  # as it should be
            continue
        exact = run.bound(problem)[0]
        if not (np.abs(got.astype(np.float64) - exact.value) <= exact.errors).all():
            return None
        returned += 1
    return "cut" if returned else None


def _exponent(run: Run) -> str | None:
    """ "contracted" if a score that is far above all others gets their weight, but not where it is so large that a unit roundoff
    of it is a large exponent; and gets it there too if it is a power of two, whose product with a constant is not rounded."""
    if run.dtype == "float16" or run.implementation.compiles:
        return None  # such scores are beyond its range
    exponent = 60 if run.precision.accumulate.unit > 2.0**-30 else 100

    def weight_is_whole(first: float, second: float) -> bool:
        problem = small_problem(run, seed=0)
        query, key = np.zeros_like(problem.query), np.zeros_like(problem.key)
        query[..., 0], key[:, :, 0, 0] = first, second
        output = run.values(problem.replace(query=query, key=key)).astype(np.float64)
        return bool((output == problem.value[:, :, :1].astype(np.float64)).all())

    half = 2.0 ** (exponent // 2)
    mantissas = [(1.25, 1.5), (1.5, 1.75), (1.125, 1.375), (1.75, 1.625)]
    if all(weight_is_whole(x * half, y * half) for x, y in mantissas) or not weight_is_whole(half, half):
        return None
    root = 2.0 ** int(np.log2(replace(run.precision, contracted=True).largest_score) / 2 - 2)
    bounded = Run(run.implementation, run.device, run.dtype, run.semantics)
    for x, y in mantissas:
        problem = small_problem(run, seed=0)
        query, key = np.zeros_like(problem.query), np.zeros_like(problem.key)
        query[..., 0], key[:, :, 0, 0] = x * root, y * root
        problem = problem.replace(query=query, key=key)
        output = bounded(problem)
        if not np.isfinite(output.value).all() or not within(output, bounded.exact(problem)):
            return None
    return "contracted"


PROBES: Mapping[str, Callable[[Run], str | None]] = {
    "causal_alignment": _causal_alignment,
    "empty_rows": value_of_empty_rows,
    "masked_values": _masked_values,
    "deterministic": _deterministic,
    "batch_invariant": _batch_invariant,
    "lse": _lse,
    "empty_lse": _empty_lse,
    "mismatched_sizes": _mismatched_sizes,
    "exponent": _exponent,
}
