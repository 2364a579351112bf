"""Comparing: whether a mistake predicts what came back, on every observation or under one condition."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.diagnosis.conditions import Condition, either_way
from qkverify.rounding import Bounded
from qkverify.runs import Run

SHOWN = 3  # observations that a mistake must explain and the reference does not

Array = np.ndarray
Parts = Mapping[str, Any]  # results by name: arrays as received, or Bounded as predicted


@dataclass(frozen=True, eq=False)
class Observation:
    """What came back on one problem (or one `Example` of another operation), and what should have."""

    subject: Any
    got: Parts
    expected: Parts
    right: bool


Predict = Callable[[Observation], Parts | None]


def agrees(got: Array, predicted: Any) -> Array:
    """bool: where a result lies within the bound of a prediction; NaN equals NaN only."""
    value, error = (predicted.value, predicted.errors) if isinstance(predicted, Bounded) else (predicted, 0.0)
    found = np.asarray(got, np.float64)
    with np.errstate(invalid="ignore"):
        same = (found == value) | (np.isnan(found) & np.isnan(value))
        return np.asarray(same | (np.abs(found - value) <= error) | np.isposinf(error))


def fits(run: Run, seen: Observation, predicted: Parts | None) -> bool | None:
    """Whether a prediction explains an observation; None where its bound is too wide to say so."""
    if not seen.got:  # a result of another shape
        return None
    if predicted is None:
        return False
    telling = seen.right
    for name, got in seen.got.items():
        if name not in predicted or np.shape(predicted[name]) != np.shape(got):
            return False
        target = Bounded(predicted[name].value, run.within(got, predicted[name]).errors)
        if not agrees(got, target).all():
            return False
        known = np.isfinite(target.errors) | ~np.isfinite(target.value)
        telling = telling or bool((known & ~agrees(got, seen.expected[name])).any())
    return True if telling else None


def select(run: Run, seen: Sequence[Observation], mistakes: Sequence[tuple[str, Predict]],
            conditions: Sequence[Condition], until: float, *, sole: bool = False) -> tuple[str, str]:  # fmt: skip
    """The first mistake that explains every observation, and the condition under which it is made ("" for always).

    It must be made on `SHOWN` observations at least. One that is made under a condition must be excluded, too, where the
    condition does not hold. With `sole` nothing is named where two explain as much.
    """
    always: list[str] = []
    conditional: list[tuple[str, str]] = []
    for text, predict in mistakes if seen[0].got else ():
        if time.perf_counter() > until:
            return "", ""
        explained: list[bool | None] = []
        for one in seen:
            explained.append(fits(run, one, predict(one)))
            if explained[-1] is False and not one.right:
                break
        else:
            made = sum(fit is True and not one.right for fit, one in zip(explained, seen, strict=True))
            if made < SHOWN:
                continue
            if False not in explained:
                if not sole:
                    return text, ""
                always.append(text)
                continue
            conditional += [(text, phrase) for phrase, holds in either_way(conditions)
                            if _separates([holds(one.subject) for one in seen], explained, seen)]  # fmt: skip
    if always:
        return (always[0] if len(set(always)) == 1 else ""), ""
    texts, phrases = {text for text, _ in conditional}, {phrase for _, phrase in conditional}
    if sole and len(texts) > 1:
        return "", ""
    if len(phrases) == 1:
        return conditional[0]
    return (texts.pop(), "on some problems") if len(texts) == 1 else ("", "")


def _separates(inside: list[bool], explained: list[bool | None], seen: Sequence[Observation]) -> bool:
    """The mistake is made wherever the condition holds, and nowhere else although it would show there."""
    rows = list(zip(inside, explained, seen, strict=True))
    return (
        all(fit is not False if within else one.right for within, fit, one in rows)
        and sum(fit is False for within, fit, _ in rows if not within) >= 2
    )


def sentence(where: str, text: str) -> str:
    """A sentence, with its condition in front."""
    others = "they are" if text.startswith("the gradients") else "it is"
    whole = f"{where} {text}; otherwise {others} right." if where else f"{text}."
    return whole[:1].upper() + whole[1:]
