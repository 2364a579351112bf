"""What is wrong with another operation without being a variant of its reference: chance, memory, strides, and where."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from qkverify.contract import OPERATIONS
from qkverify.diagnosis.fitting import SHOWN, Observation, agrees
from qkverify.diagnosis.operations.calling import Caller
from qkverify.diagnosis.operations.kind import Example
from qkverify.diagnosis.symptoms import REPEATS

SUBJECTS: Mapping[str, str] = {"result": "The result is", "gradients": "The gradients are"}
MEMORY = ("heads after length", "last axes swapped", "every second", "slice of longer")


def varies(caller: Caller, example: Example, aspect: str) -> str:
    """Right and wrong results of one example."""
    found = [one for _ in range(REPEATS) if (one := caller.observe(example, aspect)) is not None]
    if len({one.right for one in found}) < 2:
        return ""
    return "The same call gives different results from one time to the next, right and wrong ones."


def written(caller: Caller) -> str:
    """Arguments that calls have changed, but for those that the operation is to change."""
    names = OPERATIONS[caller.run.implementation.operation]
    last = len(names) if caller.operation.updated is None else caller.operation.updated
    found = " and ".join(names[i] for i in sorted(caller.written) if i < last)
    return f"The call writes into its argument {found}." if found else ""


def layouts(caller: Caller) -> str:
    """Right wherever every array is contiguous, and wrong in some order of its numbers in memory."""
    if caller.operation.updated is not None:
        return ""
    examples, wrong = caller.examples, []
    for layout in MEMORY:
        if time.perf_counter() > caller.until:
            return ""
        found = [one for e in examples if (one := caller.observe(e, "result", layout)) is not None]
        if sum(not one.right for one in found) >= SHOWN:
            wrong.append(repr(layout))
    if not wrong:
        return ""
    named = " or ".join(wrong)
    return f"The result is right where every array is contiguous and wrong with arrays as {named}: strides are misread."


def only_later(seen: Sequence[Observation], aspect: str) -> str:
    """The first of several packed sequences is always right, and of the later ones some are wrong."""
    wrong, clean, names = 0, True, set()
    for one in seen:
        starts = _first_ends(one)
        if not starts:
            return ""
        for name, got in one.got.items():
            bad = np.asarray(~agrees(got, one.expected[name]).reshape(len(got), -1).all(-1))
            clean = clean and not bad[: starts[name]].any()
            wrong += bool(bad.any())
            names |= {name} if bad.any() else set()
    alone = [one for one in seen if len(one.subject.arguments[3]) == 2]
    if wrong < SHOWN or not clean or not alone:
        return ""
    parts = (
        f"The gradients of {' and '.join(sorted(names))} are" if aspect == "gradients" else SUBJECTS[aspect]
    )
    return f"{parts} right for the first sequence of a pack, and not always for later ones."


def _first_ends(one: Observation) -> dict[str, int]:
    """Where the first sequence ends in each result, if the operation packs sequences."""
    arguments = one.subject.arguments
    if len(arguments) != 5 or not all(np.ndim(x) == 1 and x.dtype.kind == "i" for x in arguments[3:]):
        return {}
    queries, keys = (int(x[1]) for x in arguments[3:])
    return {"result": queries, "query": queries, "key": keys, "value": keys}
