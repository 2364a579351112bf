"""What went wrong, in one sentence: a wrong result is compared with what well-known mistakes would give.

A mistake is a variant of the reference, and it is believed only if it predicts, within its own derived bound, what the
implementation returns on the counterexample and on a few dozen further problems made from it: wherever the mistake matters
the implementation is wrong in the same way, and everywhere else it is right. A mistake that shows on some problems only
("with causality") must be right about where. On the tiny problems that counterexamples shrink to, many mistakes give the same
numbers; the further problems tell them apart, with random arrays, sizes that all differ, options added and taken away. Results
so near to the right one that they could be both prove nothing.

Before it is said, a sentence is tested on random problems as the laws draw them and on those of all failures so far; one of
them that contradicts it, and it is not said (see `claims`).

Where no mistake fits, it is said where the wrong elements are if that is simple, and else nothing: rather silent than wrong.
Nothing is said of what the implementation raises, nor of a law that failed although the results of its problems are right,
unless something else was watched (a call that writes into its argument). Dropout, which is a matter of chance, has a table of
its own, and so has each operation other than attention: there a mistake is named only if it is the sole one that explains
everything.

The ugly spot: mistakes of attention that fit all observations are named in the order of the table, which goes from special
to general.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis import symptoms
from qkverify.counterexamples.diagnosis.assumed import condition, other_conventions, placed, under
from qkverify.counterexamples.diagnosis.attention import DETECTED, claim_of, random_problems
from qkverify.counterexamples.diagnosis.claims import Claim, ClaimTrial, Observation
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.dropout import dropout, unasked
from qkverify.counterexamples.diagnosis.mistakes import MISTAKES
from qkverify.counterexamples.diagnosis.observing import ASPECTS, Observer, fresh
from qkverify.counterexamples.diagnosis.operations import OTHERS, claim_about
from qkverify.counterexamples.diagnosis.operations.calling import Caller
from qkverify.counterexamples.diagnosis.operations.drawn import drawn
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

__all__ = ["MISTAKES", "claim_of_failure", "diagnose", "looks_like", "observe_with"]

SECONDS = 2.0  # what a diagnosis may cost: no call of the implementation starts after that


def looks_like(run: Run, *, dropped: bool = False) -> str:
    """The diagnosis of the example that failed last on a run, or nothing; `dropped` says that its law is about dropout."""
    try:
        wrong = [p for p in run.problems if _wrong(run, p)]
    except Exception:  # a failure is worth more than its diagnosis
        return ""
    claim = claim_of_failure(run, wrong, dropped=dropped)
    return claim.sentence if claim else ""


def diagnose(run: Run, problem: Problem) -> str:
    """One sentence that says which well-known mistake explains what a run returns on a problem; empty when none does.

    The implementation is called again on the problem and on others made from it, for a second or two; the run itself keeps
    its state.
    """
    try:
        claim = _of_problem(run, problem, Deadline(SECONDS), trial_of(run))
    except Exception:  # as above
        return ""
    return claim.sentence if claim else ""


def claim_of_failure(
    run: Run, wrong: Sequence[Any], known: Iterable[Any] = (), *, dropped: bool = False, right: bool = False
) -> Claim | None:
    """What went wrong in the example that failed last, of which the problems `wrong` have wrong results; None if that is unknown.

    `known` are the problems of other failures, which must not contradict it; `dropped` says that the law is about dropout,
    `right` that the calls of the example were made again and their results are right.
    """
    until = Deadline(SECONDS)
    try:
        with np.errstate(all="ignore"):
            if run.implementation.operation != "attention":
                return claim_about(run, until, trial_of(run, known), right=right)
            return _of_attention(run, wrong, until, trial_of(run, known), dropped)
    except Exception:  # as above
        return None


def _of_attention(
    run: Run, wrong: Sequence[Problem], until: Deadline, trial: ClaimTrial, dropped: bool
) -> Claim | None:
    if run.offers("dropout") and (wrong or dropped):
        text = _of_dropout(run, until, dropped)
        if text:
            return symptoms.watched(text, "output")
    for problem in wrong:
        claim = _of_problem(run, problem, until, trial)
        if claim is not None:
            return claim
    return _under_other_conventions(run, wrong[0], trial) if wrong else _of_right_problems(run, until)


def _under_other_conventions(run: Run, problem: Problem, trial: ClaimTrial) -> Claim | None:
    """A mistake that fits if what the implementation does not declare is taken for something else."""
    known, end = list(trial.known()), Deadline(2 * SECONDS)
    for conventions in other_conventions(run, problem):
        if end.over:
            return None
        other = under(run, conventions)
        subjects = [placed(subject, conventions) for subject in (problem, *known)]
        until = Deadline(SECONDS)
        claim = _of_problem(other, subjects[0], until, trial_of(other, subjects[1:]))
        about_conventions = (
            claim is not None and DETECTED in claim.sentence
        )  # which are supposed to be others
        if claim is not None and not claim.direct and not about_conventions:
            return _supposing(claim, other, conventions)
    return None


def _supposing(claim: Claim, other: Run, conventions: Mapping[str, str]) -> Claim:
    """The claim with its conventions in front."""

    def said(sentence: str) -> str:
        return sentence and condition(conventions) + sentence[:1].lower() + sentence[1:]

    return replace(
        claim, sentence=said(claim.sentence), narrower=said(claim.narrower),
        observed=lambda subject: observe_with(other, placed(subject, conventions), claim.aspect),
    )  # fmt: skip


def _of_dropout(run: Run, until: Deadline, dropped: bool) -> str:
    """What is wrong with dropout; nothing where the sizes that show it are refused."""
    try:
        return (dropout if dropped else unasked)(run, until)
    except Exception:  # as above
        return ""


def _of_problem(run: Run, problem: Problem, until: Deadline, trial: ClaimTrial) -> Claim | None:
    if until.over:
        return None
    with np.errstate(all="ignore"):
        return claim_of(Observer(fresh(run), problem, until), trial)


def _of_right_problems(run: Run, until: Deadline) -> Claim | None:
    """What was watched on problems whose results are right, called once: calls that write, that vary, that remember."""
    for problem in {id(p): p for p in run.problems}.values():
        observer = Observer(fresh(run), problem, until)
        for aspect in ASPECTS:
            if observer.applies(aspect):
                claim = symptoms.varies(observer, problem, aspect) or symptoms.remembered(observer, aspect)
                if claim:
                    return claim
        if claim := symptoms.written(observer):
            return claim
    return None


def trial_of(run: Run, known: Iterable[Any] = (), seed: int = 7) -> ClaimTrial:
    """The tests of a claim about the implementation of a run: the known problems, and random ones of a seed."""
    other = fresh(run)

    def random(aspect: str) -> Iterator[Any]:
        generator = np.random.default_rng(seed)
        if run.implementation.operation == "attention":
            return random_problems(other, aspect, generator)
        return drawn(other, generator)

    subjects = list(known)
    return ClaimTrial(
        lambda subject, aspect: observe_with(other, subject, aspect), lambda: iter(subjects), random
    )


def observe_with(run: Run, subject: Any, aspect: str) -> Observation | None:
    """One aspect of the result for a problem of attention, or an example of another operation; None where it raises.

    None, too, for a query, key or value that is not finite: what a mistake makes of NaN depends on how it is written.
    """
    until = Deadline(SECONDS)
    with np.errstate(all="ignore"):
        if isinstance(subject, Problem):
            if not all(np.isfinite(x).all() for x in (subject.query, subject.key, subject.value)):
                return None
            observer = Observer(run, subject, until)
            return observer.observe(subject, aspect) if observer.applies(aspect) else None
        caller = Caller(run, OTHERS[run.implementation.operation], until)
        return caller.observe(subject, aspect) if aspect != "gradients" or caller.differentiates else None


def _wrong(run: Run, problem: Problem) -> bool:
    observations = (observe_with(fresh(run), problem, aspect) for aspect in ASPECTS)
    return any(observation is not None and not observation.right for observation in observations)
