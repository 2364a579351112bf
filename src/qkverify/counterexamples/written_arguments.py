"""Failures that come of a call that writes to its arguments: the law holds once every call is given copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.contract import OPERATIONS
from qkverify.counterexamples.diagnosis.observing import fresh
from qkverify.counterexamples.diagnosis.operations import OTHERS
from qkverify.runs.run import Run


def written_arguments(run: Run, replay: Callable[[Run], object]) -> list[str]:
    """The names of the arguments that calls write to, if that alone breaks a law; else nothing.

    `replay` checks the law on the failed example with another run. Operations that are there to write (caches) are left out.
    """
    operation = run.implementation.operation
    if operation in OTHERS and OTHERS[operation].updated is not None:
        return []
    other, written = fresh(run), set[str]()
    other.implementation = replace(run.implementation, function=_given_copies(run, written))
    try:
        replay(other)
    except BaseException:  # whatever else is wrong; SkipTest of a refusal included
        return []
    return sorted(written)


def _given_copies(run: Run, written: set[str]) -> Callable[..., Any]:
    """The function on copies of its arrays; the names of those that it has changed join `written`."""
    framework, function = run.framework, run.implementation.function
    names = OPERATIONS[run.implementation.operation]

    def call(*arguments: Any, **keywords: Any) -> Any:
        given = {**dict(zip(names, arguments, strict=False)), **keywords}
        copies = {name: framework.duplicate(x) for name, x in given.items() if framework.is_array(x)}
        result = function(
            *(copies.get(name, x) for name, x in zip(names, arguments, strict=False)),
            *arguments[len(names) :],
            **{name: copies.get(name, x) for name, x in keywords.items()},
        )
        for name, copy in copies.items():
            before, after = framework.to_numpy(given[name]), framework.to_numpy(copy)
            if not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
                written.add(name)
        return result

    return call
