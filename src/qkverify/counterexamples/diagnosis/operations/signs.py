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
    found = [one for _ in range(REPEATS) if (one := caller.observe(example, aspect)) is not None]
    if len({one.right for one in found}) < 2:
        return None
    return watched(
        "The same call gives different results from one time to the next, right and wrong ones.", aspect
    )


def written(caller: Caller) -> Claim | None:
    """Arguments that calls have changed, but for those that the operation is to change."""
    names = OPERATIONS[caller.run.implementation.operation]
    last = len(names) if caller.operation.updated is None else caller.operation.updated
    found = [names[i] for i in sorted(caller.written) if i < last]
    return writes_into(found, "result") if found else None


def layouts(caller: Caller) -> Claim | None:
    """Right wherever every array is contiguous, and wrong in some order of its numbers in memory."""
    if caller.operation.updated is not None:
        return None
    examples, wrong = caller.examples, []
    for layout in MEMORY:
        if caller.until.over:
            return None
        found = [one for e in examples if (one := caller.observe(e, "result", layout)) is not None]
        if sum(not one.right for one in found) >= SHOWN:
            wrong.append(repr(layout))
    if not wrong:
        return None
    named = " or ".join(wrong)
    text = f"The result is right where every array is contiguous and wrong with arrays as {named}: strides are misread."
    return Claim(text, "result", lambda seen: not seen.right)  # what it is tested on is contiguous


def only_later(seen: Sequence[Observation], aspect: str) -> Claim | None:
    """The first of several packed sequences is always right, and of the later ones some are wrong."""
    wrong, names = 0, set()
    for one in seen:
        if not _first_ends(one):
            return None
        bad = {name for name, elements in _wrong(one).items() if elements.any()}
        wrong += len(bad)
        names |= bad
    alone = [one for one in seen if len(one.subject.arguments[3]) == 2]
    if wrong < SHOWN or any(map(_first_is_wrong, seen)) or not alone:
        return None
    parts = (
        f"The gradients of {' and '.join(sorted(names))} are" if aspect == "gradients" else SUBJECTS[aspect]
    )
    return Claim(
        f"{parts} right for the first sequence of a pack, and not always for later ones.",
        aspect,
        _first_is_wrong,
    )


def _wrong(one: Observation) -> dict[str, np.ndarray]:
    """bool by result: the rows that hold a wrong element."""
    return {
        name: np.asarray(~agrees(got, one.expected[name]).reshape(len(got), -1).all(-1))
        for name, got in one.got.items()
    }


def _first_is_wrong(one: Observation) -> bool:
    starts = _first_ends(one)
    return any(bad[: starts[name]].any() for name, bad in _wrong(one).items())


def _first_ends(one: Observation) -> dict[str, int]:
    """Where the first sequence ends in each result, if the operation packs sequences."""
    arguments = one.subject.arguments
    if len(arguments) != 5 or not all(np.ndim(x) == 1 and x.dtype.kind == "i" for x in arguments[3:]):
        return {}
    queries, keys = (int(x[1]) for x in arguments[3:])
    return {"result": queries, "query": queries, "key": keys, "value": keys}
