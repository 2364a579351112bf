"""What the calls of an example have that a plain call has not, in words.

A law is broken on a smallest example: shrinking has taken away whatever the failure does not need. What is left (an
option, NaN, grouped heads, sizes that do not fit) says where else the failure can show: a workload that lacks one of
these traits does not fall under it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem

# Standard normal numbers, which workloads hold, do not lie outside: of 10^9 one does with a chance of 10^-6.
ORDINARY = 8.0


def of(calls: Iterable[Any]) -> list[str]:
    """The traits of all these problems together, sorted. What is no attention problem has none."""
    problems = [call for call in calls if isinstance(call, Problem)]
    return sorted({trait for problem in problems for trait in of_shape(problem) | _of_numbers(problem)})


def of_shape(problem: Problem) -> set[str]:
    """The traits of sizes, options and layouts."""
    s, traits = problem.sizes, set(problem.options)
    if min(s.values()) == 0:
        return {*traits, "an axis without elements"}
    facts = {
        "several batch entries": s["B"] > 1,
        "several heads": s["H"] > 1,
        "grouped heads": s["H"] != s["G"],
        "values of another size": s["D"] != s["E"],
        "positions of unequal lengths": s["Q"] != s["K"] and bool({"causal", "window"} & traits),
        "sizes that do not fit": not _fit(problem),
        "a layout of its own": any(layout != "contiguous" for layout in problem.layouts.values()),
    }
    return traits | {trait for trait, holds in facts.items() if holds}


def _fit(problem: Problem) -> bool:
    query, key, value = problem.query.shape, problem.key.shape, problem.value.shape
    return query[0] == key[0] == value[0] and key[1:3] == value[1:3] and query[3] == key[3]


def _of_numbers(problem: Problem) -> set[str]:
    arrays = [np.asarray(x, np.float64).ravel() for x in (problem.query, problem.key, problem.value)]
    numbers = np.concatenate(arrays)
    if not np.isfinite(numbers).all():
        return {"NaN or infinity"}
    return {"large numbers"} if np.abs(numbers).max(initial=0.0) > ORDINARY else set()
