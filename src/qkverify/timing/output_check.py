"""What a timed call returned, and whether its times can be believed: the gate of every benchmark.

On numbers that the call never saw, at the place where others stood before: every array is exactly the framework's, of
the right shape and dtype; every number that belongs to a visible key is finite; sampled rows (all, where sizes allow)
lie within the derived bound. And the call takes no less time for numbers that it has just had: what it would gain by
remembering them is no speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qkverify import units
from qkverify.problem.attention_problem import Problem
from qkverify.results import Direction
from qkverify.runs.run import Run
from qkverify.timing.fresh_inputs import FreshCall
from qkverify.timing.sampled_rows import gradients, margin_of, received
from qkverify.timing.work import key_ranges

# So many times faster in every sample than the fastest sample on new numbers: scatter does not do that.
TELLING = 1.5


class Refused(Exception):
    """The times of a call do not count; the text says what was seen."""


def copied(run: Run, output: Any, direction: Direction) -> dict[str, np.ndarray]:
    """What came back, by name, in NumPy and in memory of its own. Raises Refused for what is no such result."""
    named = _named(run, output, direction)
    framework = run.framework
    for name, array in named.items():
        if not framework.is_array(array):
            kind, arrays = type(array), run.implementation.arrays
            raise Refused(
                f"the timed call's {name} is a {kind.__module__}.{kind.__qualname__} and no array of {arrays}: "
                "what it computes when it is read is in no time"
            )
        if framework.dtype_of(array) != run.dtype:
            raise Refused(
                f"the timed call's {name} has dtype {framework.dtype_of(array)}, expected {run.dtype}"
            )
    if direction == "forward":
        return {"output": np.array(received(run, named["output"]))}
    return {name: np.array(array) for name, array in gradients(run, output).items()}


def judged(
    run: Run, trial: FreshCall, output: Any, direction: Direction, seed: int, other: Callable[[], Any]
) -> float | None:
    """The margin of what `trial.call` returned; None where it cannot be told. Raises Refused for a wrong result.

    `other` is the call on other numbers: what a wrong result is compared with.
    """
    arrays = copied(run, output, direction)
    _shaped(trial.problem, arrays)
    margin = margin_of(run, trial.problem, output, direction, seed=seed)
    if margin is not None and margin > 1:
        before = margin_of(run, trial.before, output, direction, seed=seed)
        elsewhere = copied(run, other(), direction)
        if all(np.array_equal(array, elsewhere[name]) for name, array in arrays.items()):
            raise Refused(
                "the timed call returned the very same for other numbers: it remembers an earlier call and computes nothing"
            )
        if before is not None and before <= 1:
            raise Refused(
                "the timed call returned what belongs to the numbers that its arguments held before: it remembers an "
                "earlier call (by their address, their shape or a part of their numbers) and computes nothing"
            )
        raise Refused(
            f"the timed call's output is wrong: {margin:.3g} times its bound away from the reference"
        )
    _finite(trial.problem, arrays)
    return margin


def remembers(again: Sequence[float], new: Sequence[float]) -> str:
    """What speaks for memory in the seconds of calls on numbers that were there just before, beside those on new ones."""
    if not again or not new or max(again) * TELLING >= min(new):
        return ""
    return (
        f"the timed call takes {units.seconds(max(again))} for numbers that it has just had, and {units.seconds(min(new))} "
        "for new ones: it remembers its last result, and what it would save by that is no speed"
    )


def _named(run: Run, output: Any, direction: Direction) -> dict[str, Any]:
    if direction == "forward":
        return {"output": output[0] if isinstance(output, tuple) else output}
    if run.implementation.vjp is not None:
        return {f"gradient of {n}": x for n, x in zip(("query", "key", "value"), output, strict=True)}
    first = output[0][0] if isinstance(output[0], tuple) else output[0]
    return {"output": first, **{f"gradient of {n}": x for n, x in output[1].items()}}


def _shaped(problem: Problem, arrays: dict[str, np.ndarray]) -> None:
    s = problem.sizes
    shapes = {name: getattr(problem, name).shape for name in ("query", "key", "value")}
    shapes["output"] = (s["B"], s["H"], s["Q"], s["E"])
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise Refused(f"the timed call's {name} has shape {array.shape}, expected {shapes[name]}")


def _finite(problem: Problem, arrays: dict[str, np.ndarray]) -> None:
    """Every number of finite inputs is finite, but for rows that see no key, which follow the declared convention."""
    for name, array in arrays.items():
        good = np.isfinite(array)
        if name in ("output", "query"):
            first, stop = key_ranges(problem)
            good = good | (first >= stop)[:, None]
            if problem.key_lengths is not None:
                good = (
                    good
                    | (np.minimum(stop, np.asarray(problem.key_lengths)[:, None]) <= first)[:, None, :, None]
                )
        if not good.all():
            at = [int(i) for i in np.argwhere(~good)[0]]
            raise Refused(
                f"the timed call's {name} is not finite: {array[tuple(at)]} at {at}, {int((~good).sum())} such numbers"
            )
