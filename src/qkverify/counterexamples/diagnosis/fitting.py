"""Comparing: whether a mistake predicts what came back, on every observation or under one condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.claims import Claim, Observation, Parts
from qkverify.counterexamples.diagnosis.conditions import Condition, either_way
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

SHOWN = 3  # observations that a mistake must explain and the reference does not

Array = np.ndarray
Predict = Callable[[Observation], Parts | None]
SOMETIMES = "on some problems"  # the phrase of a mistake that several conditions would explain


@dataclass(frozen=True)
class FittedMistake:
    """A mistake that explains what was observed, and where: under the condition `holds`, always, or on some problems."""

    text: str
    predict: Predict
    phrase: str = ""
    holds: Callable[[Any], bool] | None = None

    def contradicted(self, run: Run, observation: Observation) -> bool:
        """Whether an observation is not what a sentence with this mistake says."""
        if self.phrase == SOMETIMES:
            return not observation.right and fits(run, observation, self.predict(observation)) is False
        if self.holds is not None and not self.holds(observation.subject):
            return not observation.right
        return fits(run, observation, self.predict(observation)) is False


def agrees(got: Array, predicted: Any) -> Array:
    """bool: where a result lies within the bound of a prediction; NaN equals NaN only."""
    value, error = (predicted.value, predicted.errors) if isinstance(predicted, Bounded) else (predicted, 0.0)
    received = np.asarray(got, np.float64)
    with np.errstate(invalid="ignore"):
        same = (received == value) | (np.isnan(received) & np.isnan(value))
        return np.asarray(same | (np.abs(received - value) <= error) | np.isposinf(error))


def fits(run: Run, observation: Observation, predicted: Parts | None) -> bool | None:
    """Whether a prediction explains an observation; None where its bound is too wide to tell it from the right result."""
    if not observation.got:  # a result of another shape
        return None
    if predicted is None:
        return False
    telling = observation.right
    for name, got in observation.got.items():
        if name not in predicted or np.shape(predicted[name]) != np.shape(got):
            return False
        target = Bounded(predicted[name].value, run.within(got, predicted[name]).errors)
        if not agrees(got, target).all():
            return False
        telling = telling or bool(_apart(target, observation.expected[name]).any())
    return True if telling else None


def _apart(predicted: Bounded, expected: Bounded) -> Array:
    """bool: where no result could be both, the predicted and the right one. Nearer to one another they prove nothing."""
    known = np.isfinite(predicted.errors) | ~np.isfinite(predicted.value)
    between = Bounded(expected.value, expected.errors + np.where(known, predicted.errors, np.inf))
    return np.asarray(known & ~agrees(predicted.value, between))


def candidates(run: Run, observations: Sequence[Observation], mistakes: Sequence[tuple[str, Predict]],
               conditions: Sequence[Condition], until: Deadline, passed: Callable[[FittedMistake], bool], *,
               first: bool = False) -> tuple[list[FittedMistake], list[FittedMistake]]:  # fmt: skip
    """The mistakes that explain every observation, and those that do so under a condition, with the condition.

    A mistake must be made on `SHOWN` observations at least. One that is made under a condition must be excluded by as many
    where the condition does not hold. What does not pass the test is left out. With `first` the table is compared up to the
    first mistake that is always made. Nothing once the time is up: the table was not compared to its end.
    """
    always: list[FittedMistake] = []
    conditional: list[FittedMistake] = []
    for text, predict in mistakes if observations[0].got else ():
        if until.over:
            return [], []
        explained: list[bool | None] = []
        for observation in observations:
            explained.append(fits(run, observation, predict(observation)))
            if explained[-1] is False and not observation.right:
                break
        else:
            made = sum(
                fit is True and not observation.right
                for fit, observation in zip(explained, observations, strict=True)
            )
            if made < SHOWN:
                continue
            if False not in explained:
                always += filter(passed, [FittedMistake(text, predict)])
                if always and first:
                    break
                continue
            where = [
                (phrase, holds)
                for phrase, holds in either_way(conditions)
                if _separates(
                    [holds(observation.subject) for observation in observations], explained, observations
                )
            ]
            conditional += filter(passed, (FittedMistake(text, predict, *condition) for condition in where))
    return always, conditional


def chosen(
    always: Sequence[FittedMistake], conditional: Sequence[FittedMistake], *, sole: bool = False
) -> FittedMistake | None:
    """The first mistake that is always made, else the one that is made under a condition. With `sole` nothing where two mistakes
    explain as much."""
    if always:
        return always[0] if not sole or len({fitted.text for fitted in always}) == 1 else None
    texts, phrases = {fitted.text for fitted in conditional}, {fitted.phrase for fitted in conditional}
    if not texts or (sole and len(texts) > 1):
        return None
    if len(phrases) == 1:
        return conditional[0]
    return replace(conditional[0], phrase=SOMETIMES, holds=None) if len(texts) == 1 else None


def _separates(inside: list[bool], explained: list[bool | None], observations: Sequence[Observation]) -> bool:
    """The mistake is made wherever the condition holds, and nowhere else although it would show there."""
    rows = list(zip(inside, explained, observations, strict=True))
    return (
        all(fit is not False if within else observation.right for within, fit, observation in rows)
        and sum(fit is False for within, fit, _ in rows if not within) >= SHOWN
    )


def claim(run: Run, fitted: FittedMistake, aspect: str, text: str) -> Claim:
    """What a mistake claims, in a sentence with its condition in front."""
    others = "they are" if text.startswith("the gradients") else "it is"
    narrower = f"{fitted.phrase} {text}." if fitted.holds else ""
    whole = f"{fitted.phrase} {text}; otherwise {others} right." if fitted.phrase else f"{text}."
    return Claim(
        _capital(whole), aspect, lambda observation: fitted.contradicted(run, observation), _capital(narrower),
        fitted.holds or (lambda subject: True),
    )  # fmt: skip


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
