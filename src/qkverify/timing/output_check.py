"""What a timed call returned, and whether its times can be believed: the gate of every benchmark.

On numbers that the call never saw, at the place where others stood before: every array is exactly the framework's, of
the right shape and dtype, in memory of its own; every number that belongs to a visible key is finite; sampled rows (all,
where sizes allow) lie within the derived bound. The same is asked of some calls out of the middle of the timing, whose rows
are drawn after they returned (`kept_calls`). And the call takes no less time for numbers that it has just had: what it would
gain by remembering them is no speed.

`judged` is for results of any kind; how one is read and judged is said by its `ResultCheck`, here that of attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

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
LATE_SECONDS = 0.5  # after which a wrong result is read once more: has somebody gone on writing it?


class Refused(Exception):
    """The times of a call do not count; the text says what was seen."""


class ResultCheck(Protocol):
    """How the results of one cell are read and judged. `problem` is what the call was given."""

    def natives(self, output: Any) -> Mapping[str, Any]:
        """Every array of a result, by name."""
        ...

    def arrays(self, problem: Any, output: Any) -> dict[str, np.ndarray]:
        """What came back, in NumPy and in memory of its own. Raises Refused for what is no such result."""
        ...

    def margin(self, problem: Any, output: Any) -> float | None:
        """The largest |got - exact| / bound; None where it cannot be told."""
        ...

    def check_finite(self, problem: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises Refused for a number that is not finite and should be."""
        ...


def judged(
    check: ResultCheck,
    trial: FreshCall,
    output: Any,
    other: Callable[[], Any],
    lends: Callable[[np.ndarray], bool] = lambda array: False,
) -> float | None:
    """The margin of what `trial.call` returned; None where it cannot be told. Raises Refused for a wrong result.

    `other` is the call on other numbers: what a wrong result is compared with. `lends` says whether an array lies in the memory
    of the arguments.
    """
    arrays = check.arrays(trial.problem, output)
    margin = check.margin(trial.problem, output)
    if margin is not None and margin > 1:
        raise Refused(_why_wrong(check, trial, output, arrays, margin, other))
    check.check_finite(trial.problem, arrays)
    for name, array in check.natives(output).items():
        if lends(array):
            raise Refused(
                f"the timed call's {name} lies in the memory of its arguments, where whoever writes the next ones writes over it"
            )
    if names := trial.written():
        raise Refused(
            f"the timed call wrote to its {' and '.join(names)}: the calls after it were on what it left there"
        )
    return margin


def _why_wrong(
    check: ResultCheck,
    trial: FreshCall,
    output: Any,
    arrays: Mapping[str, np.ndarray],
    margin: float,
    other: Callable[[], Any],
) -> str:
    """What is seen of a wrong result: that it is still being written, or that it belongs to another call."""
    time.sleep(LATE_SECONDS)
    late = check.arrays(trial.problem, output)
    if not same(arrays, late):
        return (
            "the timed call's result changed after it had returned: something goes on computing then, and its time is in no "
            "sample"
        )
    elsewhere = check.arrays(trial.problem, other())
    if same(arrays, elsewhere):
        return "the timed call returned the very same for other numbers: it remembers an earlier call and computes nothing"
    before = check.margin(trial.before, output)
    if before is not None and before <= 1:
        return (
            "the timed call returned what belongs to the numbers that its arguments held before: it remembers an "
            "earlier call (by their address, their shape or a part of their numbers) and computes nothing"
        )
    return wrong(margin)


def wrong(margin: float) -> str:
    """What is said of a result beyond its bound."""
    return f"the timed call's output is wrong: {margin:.3g} times its bound away from the reference"


def same(arrays: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    """Whether two results are the same, bit for bit."""
    return all(array.tobytes() == others[name].tobytes() for name, array in arrays.items())


def check_kinds(run: Run, natives: Mapping[str, Any]) -> None:
    """Raises Refused where one of these is no array of the run's framework."""
    for name, array in natives.items():
        if not run.framework.is_array(array):
            kind, arrays = type(array), run.implementation.arrays
            raise Refused(
                f"the timed call's {name} is a {kind.__module__}.{kind.__qualname__} and no array of {arrays}: "
                "what it computes when it is read is in no time"
            )


class AttentionCheck:
    """Attention in one direction. `seed` chooses the rows that are sampled, as that of the problem's upstream gradient."""

    def __init__(self, run: Run, direction: Direction, seed: int) -> None:
        self._run, self._direction, self._seed = run, direction, seed

    def natives(self, output: Any) -> dict[str, np.ndarray]:
        named = _named(self._run, output, self._direction)
        return {name: np.asarray(self._run.framework.to_numpy(array)) for name, array in named.items()}

    def arrays(self, problem: Problem, output: Any) -> dict[str, np.ndarray]:
        run, named = self._run, _named(self._run, output, self._direction)
        check_kinds(run, named)
        for name, array in named.items():
            if run.framework.dtype_of(array) != run.dtype:
                raise Refused(
                    f"the timed call's {name} has dtype {run.framework.dtype_of(array)}, expected {run.dtype}"
                )
        if self._direction == "forward":
            arrays = {"output": np.array(received(run, named["output"]))}
        else:
            arrays = {name: np.array(array) for name, array in gradients(run, output).items()}
        _shaped(problem, arrays)
        return arrays

    def margin(self, problem: Problem, output: Any) -> float | None:
        return margin_of(self._run, problem, output, self._direction, seed=self._seed)

    def check_finite(self, problem: Problem, arrays: Mapping[str, np.ndarray]) -> None:
        _finite(problem, arrays)


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


def _finite(problem: Problem, arrays: Mapping[str, np.ndarray]) -> None:
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
