"""Whether the calls of a failed example were right or wrong by themselves, whatever its law is about.

A law about repeated calls fails on a kernel that is wrong everywhere; so the problems of the example are called once more, each
alone, and compared with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.contract import OPERATIONS
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.discriminating_problems import filled
from qkverify.counterexamples.diagnosis.observing import ASPECTS, Observer, fresh
from qkverify.counterexamples.diagnosis.operations import OTHERS
from qkverify.counterexamples.diagnosis.operations.calling import ASPECTS as ASPECTS_OF_OTHERS
from qkverify.counterexamples.diagnosis.operations.calling import Caller
from qkverify.counterexamples.diagnosis.operations.drawn import ASKED, as_example
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OPERATION_SPECS, OperationCall, example

SECONDS = 1.0  # what it may cost: no call starts after that
MOST = 8  # problems of one example that are called again


@dataclass(frozen=True)
class Judged:
    """A problem of attention or an example of another operation, and which aspects of its result are wrong ("output")."""

    subject: Any
    wrong: tuple[str, ...]

    @property
    def value(self) -> bool:
        return any(aspect != "gradients" for aspect in self.wrong)

    @property
    def gradient(self) -> bool:
        return "gradients" in self.wrong


def judged(run: Run) -> list[Judged]:
    """Every problem of the example that failed last. What raises when it is called again, or takes too long, is left out."""
    until = Deadline(SECONDS)
    found = []
    with np.errstate(all="ignore"):
        try:
            for one in _of_attention(run, until) if _attends(run) else _of_another(run, until):
                found.append(one)
        except (
            Exception
        ):  # TimeoutError, or an operation that cannot be judged by itself: the failure stands without
            return found
    return found


def numbers_of(run: Run) -> int:
    """How many numbers stand in the arrays of the example that failed last."""
    if _attends(run):
        return sum(
            np.size(x) for p in run.problems[:1] for x in vars(p).values() if isinstance(x, np.ndarray)
        )
    return sum(np.size(x) for call in _calls(run)[:1] for x in call.arrays.values())


def _attends(run: Run) -> bool:
    return run.implementation.operation == "attention"


def _of_attention(run: Run, until: Deadline) -> Iterator[Judged]:
    own = fresh(run)
    for problem in _distinct(run.problems):
        one = _of_problem(own, problem, until)
        yield one
        if one.wrong == (
            "gradients",
        ):  # values of zero hide a wrong output, not what it makes of the gradients
            yield _of_problem(own, _of_any_numbers(own, problem), until)


def _of_problem(run: Run, problem: Problem, until: Deadline) -> Judged:
    observer = Observer(run, problem, until)
    seen = {a: observer.observe(problem, a) for a in ASPECTS if observer.applies(a)}
    return Judged(problem, tuple(a for a, one in seen.items() if one is not None and not one.right))


def _of_any_numbers(run: Run, p: Problem) -> Problem:
    """A problem of the same sizes and options, with random numbers."""
    sizes = (p.sizes["B"], p.sizes["G"], p.group, *(p.sizes[letter] for letter in "QKDE"))
    return filled(run, p, sizes, np.random.default_rng(0), p.options)


def _distinct(problems: list[Problem]) -> list[Problem]:
    return list({id(problem): problem for problem in problems}.values())[:MOST]


def _of_another(run: Run, until: Deadline) -> Iterator[Judged]:
    caller = Caller(fresh(run), OTHERS[run.implementation.operation], until)
    for call in _calls(run):
        if until.over:
            return
        one = as_example(caller.run, call)
        aspects = [a for a in ASPECTS_OF_OTHERS if a == "result" or caller.differentiates]
        seen = {a: caller.observe(one, a) for a in aspects}
        yield Judged(one, tuple(a for a, got in seen.items() if got is not None and not got.right))


def _calls(run: Run) -> list[OperationCall]:
    """The calls of the failed example: those that were drawn as such, or those that its law made."""
    operation = run.implementation.operation
    drawn = run.failing.get("call")
    if drawn is not None:
        return [example(run, drawn, turn) for turn in range(2)]
    names = OPERATIONS[operation]
    return [
        OperationCall(
            OPERATION_SPECS[operation],
            dict(zip(names, arguments, strict=False)),
            {n: x for n, x in options.items() if n not in ASKED},
        )
        for arguments, options in run.requests[:MOST]
    ]
