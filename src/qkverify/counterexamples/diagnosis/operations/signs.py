"""What is wrong with another operation without being a variant of its reference: chance, memory, strides, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qkverify.contract import OPERATIONS
from qkverify.counterexamples.diagnosis.claims import Claim, Observation
from qkverify.counterexamples.diagnosis.fitting import SHOWN, agrees
from qkverify.counterexamples.diagnosis.operations.calling import Caller
from qkverify.counterexamples.diagnosis.operations.kind import Example
from qkverify.counterexamples.diagnosis.symptoms import REPEATS, watched, writes_into

SUBJECTS: Mapping[str, str] = {"result": "The result is", "gradients": "The gradients are"}
MEMORY = ("heads after length", "last axes swapped", "every second", "slice of longer")


def varies(caller: Caller, example: Example, aspect: str) -> Claim | None:
    """Right and wrong results of one example."""
    observations = [
        observation for _ in range(REPEATS) if (observation := caller.observe(example, aspect)) is not None
    ]
    if len({observation.right for observation in observations}) < 2:
        return None
    return watched(
        "The same call gives different results from one time to the next, right and wrong ones.", aspect
    )


def written(caller: Caller) -> Claim | None:
    """Arguments that calls have changed, but for those that the operation is to change."""
    names = OPERATIONS[caller.run.implementation.operation]
    last = len(names) if caller.operation.updated is None else caller.operation.updated
    changed = [names[i] for i in sorted(caller.written) if i < last]
    return writes_into(changed, "result") if changed else None


def layouts(caller: Caller) -> Claim | None:
    """Right wherever every array is contiguous, and wrong in some order of its numbers in memory."""
    if caller.operation.updated is not None:
        return None
    examples, wrong = caller.examples, []
    for layout in MEMORY:
        if caller.until.over:
            return None
        observations = [
            observation for e in examples if (observation := caller.observe(e, "result", layout)) is not None
        ]
        if sum(not observation.right for observation in observations) >= SHOWN:
            wrong.append(repr(layout))
    if not wrong:
        return None
    named = " or ".join(wrong)
    text = f"The result is right where every array is contiguous and wrong with arrays as {named}: strides are misread."
    return Claim(
        text, "result", lambda observation: not observation.right
    )  # what it is tested on is contiguous


def only_later(observations: Sequence[Observation], aspect: str) -> Claim | None:
    """The first of several packed sequences is always right, and of the later ones some are wrong."""
    wrong, names = 0, set()
    for observation in observations:
        if not _first_ends(observation):
            return None
        bad = {name for name, elements in _wrong(observation).items() if elements.any()}
        wrong += len(bad)
        names |= bad
    alone = [observation for observation in observations if len(observation.subject.arguments[3]) == 2]
    if wrong < SHOWN or any(map(_first_is_wrong, observations)) or not alone:
        return None
    parts = (
        f"The gradients of {' and '.join(sorted(names))} are" if aspect == "gradients" else SUBJECTS[aspect]
    )
    return Claim(
        f"{parts} right for the first sequence of a pack, and not always for later ones.",
        aspect,
        _first_is_wrong,
    )


def _wrong(observation: Observation) -> dict[str, np.ndarray]:
    """bool by result: the rows that hold a wrong element."""
    return {
        name: np.asarray(~agrees(got, observation.expected[name]).reshape(len(got), -1).all(-1))
        for name, got in observation.got.items()
    }


def _first_is_wrong(observation: Observation) -> bool:
    starts = _first_ends(observation)
    return any(bad[: starts[name]].any() for name, bad in _wrong(observation).items())


def _first_ends(observation: Observation) -> dict[str, int]:
    """Where the first sequence ends in each result, if the operation packs sequences."""
    arguments = observation.subject.arguments
    if len(arguments) != 5 or not all(np.ndim(x) == 1 and x.dtype.kind == "i" for x in arguments[3:]):
        return {}
    queries, keys = (int(x[1]) for x in arguments[3:])
    return {"result": queries, "query": queries, "key": keys, "value": keys}
