"""Two mistakes of the table at once, where no single one explains what came back.

They are believed as one is: if together they predict every observation, and random problems. The search knows every other one
of these; of all some must show that it takes both: neither mistake alone explains them.

A failure belongs to the mistake that shows on its problem. Where both do, it belongs to the one that matters on fewer problems,
so that the other keeps those where it shows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from qkverify.counterexamples.diagnosis.claims import Claim, ClaimTrial, Observation
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.fitting import SHOWN, Predict, fits
from qkverify.counterexamples.diagnosis.mistakes import MISTAKES, Mistake
from qkverify.counterexamples.diagnosis.predictions import predicting
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

SECONDS = 2.0  # what the search may cost
FIRSTS = 4  # mistakes that explain most by themselves: for each of them a second one is looked for


@dataclass(frozen=True)
class Pair:
    """Two mistakes, in the order of the table, and what they predict together."""

    first: Mistake
    second: Mistake
    predict: Predict


def two_mistakes(
    run: Run,
    observations: Sequence[Observation],
    aspect: str,
    trial: ClaimTrial,
    text: Callable[[Mistake], str],
) -> Claim | None:
    """The claim of the mistake that shows on the first observation, with that of the other one beside it; None without any."""
    shown_by = observations[0].subject
    seen = [*observations, *trial.observations(aspect)[::2]]  # the other half is new to what is found
    wrong = [observation for observation in seen if not observation.right]
    if len(wrong) < SHOWN or not all(observation.got for observation in wrong):
        return None
    until = Deadline(SECONDS)
    for pair in _pairs(run, seen, wrong, aspect, until):
        shown, other = _claims(run, pair, aspect, text)
        if trial.passed(shown) and _takes_both(run, pair, trial.observations(aspect), aspect):
            of_other = not shown.inside(shown_by) and other.inside(shown_by)
            return replace(other, beside=(shown,)) if of_other else replace(shown, beside=(other,))
    return None


def _pairs(
    run: Run, observations: Sequence[Observation], wrong: Sequence[Observation], aspect: str, until: Deadline
) -> Iterator[Pair]:
    """The pairs that explain every observation."""
    for first in islice(_partial(run, wrong, aspect, until), FIRSTS):
        alone = predicting(run, first, aspect)
        unexplained = [o for o in wrong if fits(run, o, alone(o)) is False]
        rest = [o for o in observations if o not in unexplained]
        for second in MISTAKES:
            if until.over:
                return
            for earlier, later in () if second is first else ((first, second), (second, first)):
                predict = predicting(run, earlier, aspect, later)
                if _explains(run, predict, unexplained) and _explains(run, predict, rest):
                    in_order = sorted((first, second), key=MISTAKES.index)
                    yield Pair(in_order[0], in_order[1], predict)


def _explains(run: Run, predict: Predict, observations: Sequence[Observation]) -> bool:
    """Whether a prediction contradicts none of the observations, which are more than none."""
    fit = (fits(run, observation, predict(observation)) for observation in observations)
    return bool(observations) and all(explained is not False for explained in fit)


def _takes_both(run: Run, pair: Pair, observations: Sequence[Observation], aspect: str) -> bool:
    """Whether several observations are explained by both, and by neither alone."""
    alone = [predicting(run, mistake, aspect) for mistake in (pair.first, pair.second)]
    explained = [o for o in observations if not o.right and fits(run, o, pair.predict(o))]
    return all(sum(fits(run, o, predict(o)) is False for o in explained) >= SHOWN for predict in alone)


def _partial(run: Run, wrong: Sequence[Observation], aspect: str, until: Deadline) -> Iterator[Mistake]:
    """The mistakes that explain some wrong observations by themselves, those that explain most first."""
    explained: dict[int, int] = {}
    for number, mistake in enumerate(MISTAKES):
        if until.over:
            break
        predict = predicting(run, mistake, aspect)
        explained[number] = sum(
            mistake.matters(o.subject) and fits(run, o, predict(o)) is True for o in wrong
        )
    several = [number for number, count in explained.items() if count >= SHOWN]
    return (MISTAKES[number] for number in sorted(several, key=lambda number: -explained[number]))


def _claims(run: Run, pair: Pair, aspect: str, text: Callable[[Mistake], str]) -> tuple[Claim, Claim]:
    """What each of the two claims: they are right or wrong together, and each speaks of the problems where it shows."""
    owners: dict[int, tuple[object, Mistake | None]] = {}

    def owner(subject: object) -> Mistake | None:
        if id(subject) not in owners:
            owners[id(subject)] = subject, _owner(run, pair, subject)
        return owners[id(subject)][1]

    def claim_of(mistake: Mistake, other: Mistake) -> Claim:
        return Claim(
            f"Two mistakes at once explain what is wrong: {text(mistake)} (shown here), and {text(other)}.", aspect,
            lambda observation: fits(run, observation, pair.predict(observation)) is False,
            inside=lambda subject: owner(subject) is mistake,
        )  # fmt: skip

    return claim_of(pair.first, pair.second), claim_of(pair.second, pair.first)


def _owner(run: Run, pair: Pair, subject: object) -> Mistake | None:
    """The mistake that a problem shows."""
    showing = [mistake for mistake in (pair.first, pair.second) if _shows(run, mistake, subject)]
    return max(showing, key=lambda mistake: len(mistake.needs) + len(mistake.among), default=None)


def _shows(run: Run, mistake: Mistake, subject: object) -> bool:
    if not isinstance(subject, Problem) or not mistake.matters(subject):
        return False
    exact = run.bound(subject)[0]
    right = Observation(subject, {"output": exact.value}, {"output": exact}, right=True)
    return fits(run, right, predicting(run, mistake, "output")(right)) is False
