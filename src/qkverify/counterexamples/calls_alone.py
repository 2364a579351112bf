"""Whether the calls of a failed example were right or wrong by themselves, whatever its law is about.

A law about repeated calls fails on a kernel that is wrong everywhere; so the problems of the example are called once more, each
alone, and compared with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qkverify.contract import OPERATIONS
from qkverify.counterexamples.diagnosis.claims import Observation
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.observing import ASPECTS, Observer, fresh
from qkverify.counterexamples.diagnosis.operations import OTHERS
from qkverify.counterexamples.diagnosis.operations.calling import ASPECTS as ASPECTS_OF_OTHERS
from qkverify.counterexamples.diagnosis.operations.calling import Caller
from qkverify.counterexamples.diagnosis.operations.drawn import ASKED, as_example
from qkverify.counterexamples.own_derivative import follows_own_output
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OperationCall, example
from qkverify.strategies.operations import OPERATION_SPECS

SECONDS = 1.0  # what it may cost: no call starts after that
MOST = 8  # problems of one example that are called again


@dataclass(frozen=True)
class Judged:
    """A problem of attention or an example of another operation, and which aspects of its result are wrong ("output")."""

    subject: Any
    wrong: tuple[str, ...]
    backward: bool = (
        False  # the gradients are not those of the function's own output, right or wrong as that may be
    )
    mixed: bool = False  # what is named in `wrong` is not all that is wrong

    @property
    def value(self) -> bool:
        return any(aspect != "gradients" for aspect in self.wrong)

    @property
    def gradient(self) -> bool:
        return "gradients" in self.wrong


def judged(run: Run) -> list[Judged]:
    """Every problem of the example that failed last. What raises when it is called again, or takes too long, is left out."""
    until = Deadline(SECONDS)
    calls = []
    with np.errstate(all="ignore"):
        try:
            for call in _of_attention(run, until) if _attends(run) else _of_another(run, until):
                calls.append(call)
        except (
            Exception
        ):  # TimeoutError, or an operation that cannot be judged by itself: the failure stands without
            return calls
    return calls


def blamed(calls: Sequence[Judged], *, over_gradient: bool) -> list[Judged]:
    """The calls with what a failure is put down to: to gradients alone if it is over a gradient that the backward pass got wrong
    by itself, whatever is wrong with the output."""
    if not over_gradient or not any(call.backward for call in calls):
        return list(calls)
    return [
        replace(call, wrong=("gradients",) * call.gradient, mixed=call.gradient and call.value)
        for call in calls
    ]


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
    fresh_run = fresh(run)
    for problem in _distinct(run.problems):
        call = _of_problem(fresh_run, problem, until)
        yield call
        # Values of zero hide a wrong output, not what it makes of the gradients. Huge scores hide it in a bound without end.
        hidden = call.wrong == ("gradients",) and not call.backward
        if hidden or (not call.wrong and _unbounded(fresh_run, problem)):
            yield _of_problem(fresh_run, _of_any_numbers(problem), until)


def _of_problem(run: Run, problem: Problem, until: Deadline) -> Judged:
    observer = Observer(run, problem, until)
    observations = {a: observer.observe(problem, a) for a in ASPECTS if observer.applies(a)}
    wrong = tuple(
        a for a, observation in observations.items() if observation is not None and not observation.right
    )
    gradients = observations.get("gradients")
    backward = "gradients" in wrong and gradients is not None and _of_backward_pass(run, gradients)
    return Judged(problem, wrong, backward)


def _of_backward_pass(run: Run, observation: Observation) -> bool:
    """Whether wrong gradients are known not to be those of the function's own output."""
    if not observation.got:
        return False
    try:
        return follows_own_output(run, observation.subject, observation.got, observation.expected) is False
    except Exception:  # a neighbour of the problem that is refused: it stays unknown
        return False


def _unbounded(run: Run, problem: Problem) -> bool:
    """Whether any output is within the bound: nothing is known of the result then."""
    errors = run.bound(problem)[0].errors
    return bool(np.size(errors)) and bool(np.isposinf(errors).all())


def _of_any_numbers(p: Problem) -> Problem:
    """A problem of the same sizes and options, with random numbers."""
    generator = np.random.default_rng(0)
    arrays = {name: getattr(p, name) for name in ("query", "key", "value", "bias", "upstream")}
    return p.replace(
        **{
            name: generator.standard_normal(x.shape).astype(x.dtype)
            for name, x in arrays.items()
            if x is not None
        }
    )


def _distinct(problems: list[Problem]) -> list[Problem]:
    return list({id(problem): problem for problem in problems}.values())[:MOST]


def _of_another(run: Run, until: Deadline) -> Iterator[Judged]:
    caller = Caller(fresh(run), OTHERS[run.implementation.operation], until)
    for call in _calls(run):
        if until.over:
            return
        drawn = as_example(caller.run, call)
        aspects = [a for a in ASPECTS_OF_OTHERS if a == "result" or caller.differentiates]
        observations = {a: caller.observe(drawn, a) for a in aspects}
        yield Judged(drawn, tuple(a for a, got in observations.items() if got is not None and not got.right))


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
