"""The diagnosis of other operations than attention: their mistakes compared on examples of their own.

One file each, named after the operation, with its `KIND`. A mistake is named only where it is the
sole one of its table that explains everything that was observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qkverify.contract.operations import in_each
from qkverify.counterexamples.diagnosis.claims import Claim, ClaimTrial, Observation
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.fitting import FittedMistake, candidates, chosen, claim
from qkverify.counterexamples.diagnosis.observing import fresh
from qkverify.counterexamples.diagnosis.operations import signs
from qkverify.counterexamples.diagnosis.operations.calling import ASPECTS, Caller
from qkverify.counterexamples.diagnosis.operations.kind import OperationKind
from qkverify.runs.run import Run

OTHERS: Mapping[str, OperationKind] = in_each(__name__, "KIND")


def claim_about(run: Run, until: Deadline, trial: ClaimTrial, *, right: bool = False) -> Claim | None:
    """What is wrong with another operation: its mistakes compared on examples of its own.

    With `right`, of a law whose results are right, only what is no matter of results: strides, and calls that write.
    """
    operation = OTHERS.get(run.implementation.operation)
    if operation is None:
        return None
    caller = Caller(fresh(run), operation, until)
    with np.errstate(all="ignore"):
        claims = (claim for claim in _claims(caller, trial, right) if claim is not None)
        return next((claim for claim in claims if trial.passed(claim)), None)


def _claims(caller: Caller, trial: ClaimTrial, right: bool) -> Iterator[Claim | None]:
    """What fits the examples, the surest first. What is about one aspect ends with it."""
    for aspect in ASPECTS:
        observations = caller.observations(aspect)
        if not observations or observations[0].right:
            continue
        if right:
            break
        yield signs.varies(caller, observations[0].subject, aspect)
        yield _known_mistake(caller, observations, aspect, trial)
        yield signs.written(caller)
        yield signs.only_later(observations, aspect)
        return
    yield signs.layouts(caller)
    yield signs.written(caller)


def _known_mistake(
    caller: Caller, observations: Sequence[Observation], aspect: str, trial: ClaimTrial
) -> Claim | None:
    """The one mistake of the table that explains what was observed, with its condition."""

    def claim_with(fitted: FittedMistake) -> Claim:
        return claim(caller.run, fitted, aspect, ASPECTS[aspect].format(fitted.text))

    conditions = caller.operation.conditions
    fitting = chosen(
        *candidates(caller.run, observations, caller.mistakes(aspect), conditions, caller.until,
                    lambda candidate: trial.passed(claim_with(candidate))), sole=True)  # fmt: skip
    return claim_with(fitting) if fitting else None
