"""Diagnoses under other conventions than the detected ones.

Where a library says nothing of its conventions, they are found out on small examples, and a kernel with a mistake shows others
than were meant: one that does not see its own position looks aligned at the other end. So where no mistake fits, the conventions
that are not declared are taken for others, and the sentence says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from qkverify.counterexamples.diagnosis.observing import fresh
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

CHOICES: Mapping[str, tuple[str, ...]] = {
    "causal_alignment": ("bottom-right", "top-left"),
    "empty_rows": ("zero", "nan", "uniform"),
}
WORDS = {"causal_alignment": "causal is aligned {}", "empty_rows": "queries that see no key give {}"}
SAID = {"zero": "zero", "nan": "NaN", "uniform": "the mean of all values"}
HIDING = {"causal", "window", "mask", "key_lengths", "bias", "alibi_slopes"}


def other_conventions(run: Run, problem: Problem) -> Iterator[dict[str, str]]:
    """The conventions that differ from the detected ones and matter where keys are hidden, those that differ in one first."""
    if not HIDING & problem.options.keys():
        return
    names = [name for name in CHOICES if name not in run.implementation.semantics]
    every = (dict(zip(names, values, strict=True)) for values in product(*(CHOICES[name] for name in names)))
    changed = [
        {n: value for n, value in conventions.items() if value != run.semantics[n]} for conventions in every
    ]
    yield from sorted(filter(None, changed), key=len)


def under(run: Run, conventions: Mapping[str, str]) -> Run:
    """The run, held to other conventions."""
    other = fresh(run)
    other.semantics = {**run.semantics, **conventions}
    return other


def placed(subject: Any, conventions: Mapping[str, str]) -> Any:
    """A problem under other conventions."""
    return subject.replace(**conventions) if isinstance(subject, Problem) else subject


def condition(conventions: Mapping[str, str]) -> str:
    """ "If causal is aligned bottom-right, "."""
    return f"If {' and '.join(WORDS[name].format(SAID.get(x, x)) for name, x in conventions.items())}, "
