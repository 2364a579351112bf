"""The diagnosis of attention: symptoms that show by themselves, then the table of mistakes, then where it is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qkverify.counterexamples.diagnosis import symptoms
from qkverify.counterexamples.diagnosis.claims import Claim, ClaimTrial, Observation
from qkverify.counterexamples.diagnosis.conditions import CONDITIONS
from qkverify.counterexamples.diagnosis.fitting import FittedMistake, candidates, chosen, claim
from qkverify.counterexamples.diagnosis.mistakes import MISTAKES, Mistake
from qkverify.counterexamples.diagnosis.mistakes.variants import other_alignment
from qkverify.counterexamples.diagnosis.observing import ASPECTS, Observer
from qkverify.counterexamples.diagnosis.predictions import predicting
from qkverify.counterexamples.diagnosis.two_mistakes import two_mistakes
from qkverify.problem.attention_problem import Problem
from qkverify.problem.byte_strategies import sampled
from qkverify.runs.run import Run
from qkverify.strategies.attention_problems import problems

DETECTED = "was detected"
DRAWN = 2000  # random problems at most: an implementation may accept next to none


def claim_of(observer: Observer, trial: ClaimTrial) -> Claim | None:
    """What went wrong on the observer's problem, or None. Raises TimeoutError once the time is up."""
    aspect, observations = observer.observations()
    if not observations or observations[0].right:
        return symptoms.written(observer)
    first = observations[0].subject
    if first.options.keys() != observer.problem.options.keys():  # begin anew with what is wrong
        return claim_of(Observer(observer.run, first, observer.until), trial)
    claims = (claim for claim in _claims(observer, observations, aspect, trial) if claim is not None)
    return next((claim for claim in claims if trial.passed(claim)), None)


def _claims(
    observer: Observer, observations: Sequence[Observation], aspect: str, trial: ClaimTrial
) -> Iterator[Claim | None]:
    """What fits the observations, the surest first."""
    first = observations[0].subject
    yield symptoms.varies(observer, first, aspect)
    yield symptoms.mode(observer, first, aspect)
    yield symptoms.layouts(observer, first, aspect)
    yield symptoms.lse_switch(observer, first, aspect)
    yield _known_mistake(observer, observations, aspect, trial)
    yield symptoms.written(observer)
    yield symptoms.remembered(observer, aspect)
    yield from symptoms.digits(observer, aspect)
    yield two_mistakes(
        observer.run, observations, aspect, trial, lambda m: _text(observer.run, m, _words(observer.problem))
    )
    yield symptoms.place(observer, observations, aspect)


def _known_mistake(
    observer: Observer, observations: Sequence[Observation], aspect: str, trial: ClaimTrial
) -> Claim | None:
    """The first mistake of the table that explains what was observed, with its condition."""
    words, first, run = _words(observer.problem), observations[0].subject, observer.run
    every = [(_text(run, m, words), predicting(run, m, aspect)) for m in MISTAKES if m.matters(first)]

    def claim_with(fitted: FittedMistake) -> Claim:
        of = {"lse": "that of ", "gradients": "those of "}.get(aspect, "")
        those = of if "attention" in fitted.text.split()[:2] else ""
        return claim(run, fitted, aspect, ASPECTS[aspect].format(those + fitted.text))

    fitting = chosen(
        *candidates(
            run,
            observations,
            every,
            CONDITIONS,
            observer.until,
            lambda candidate: trial.passed(claim_with(candidate)),
            first=True,
        )
    )
    return claim_with(fitting) if fitting else None


def _text(run: Run, mistake: Mistake, words: Mapping[str, str]) -> str:
    """What a mistake is, in words. A convention that nobody declares is called detected."""
    held = "empty_rows" if "{empty}" in mistake.text else "causal_alignment"
    how = "is declared" if held in run.implementation.semantics else DETECTED
    return mistake.text.format(**words).replace("is declared", how)


def _words(p: Problem) -> dict[str, str]:
    return {"declared": p.causal_alignment, "other": other_alignment(p), "empty": p.empty_row}


def random_problems(run: Run, aspect: str, generator: np.random.Generator) -> Iterator[Problem]:
    """Problems as the laws draw them: every fourth may be long."""
    short, long = (problems(upstream=aspect == "gradients", long=long) for long in (False, True))
    for number in range(DRAWN):
        with run.activated():
            problem = sampled(long if number % 4 == 3 else short, generator)
        if problem is not None:
            yield problem
