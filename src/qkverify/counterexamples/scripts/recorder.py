"""A run that writes down its calls: what was given, what came back, what was done to the arguments."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qkverify.counterexamples.diagnosis.claims import Observation
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.operations import OTHERS
from qkverify.counterexamples.diagnosis.operations.calling import Caller
from qkverify.counterexamples.diagnosis.operations.kind import Example
from qkverify.errors import UnsupportedCase
from qkverify.problem.attention_problem import LAYOUTS, TENSORS, Problem
from qkverify.rounding import Bounded
from qkverify.runs.run import Run

if TYPE_CHECKING:
    from qkverify.verification.laws import Law

Array = np.ndarray
ARRAYS = (*TENSORS, "alibi_slopes", "key_lengths", "sinks")  # the fields of a problem that may hold an array


@dataclass
class Recorded:
    """One call: its arguments as they were before it, what came back, and what it did to them."""

    kind: str  # "attention", "gradients", "unchecked", "dropout", "dropout gradients", or the operation
    problem: Problem | None = None
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    got: dict[str, Array] = field(default_factory=dict)
    exact: dict[str, Bounded] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    after: list[Array] = field(default_factory=list)  # arguments that the call is to write, as it left them
    layouts: dict[int, str] = field(default_factory=dict)  # of another operation's arguments, by number
    upstream: tuple[
        Array, ...
    ] = ()  # of another operation's gradients; of attention's it is part of the problem
    judged: str = "result"  # of several results, the one that is looked at
    error: Exception | None = None


class Recorder(Run):
    """A run like another one that writes down its calls."""

    def __init__(self, run: Run) -> None:
        vars(self).update(vars(run))
        self.largest_margin, self.problems, self._cache = 0.0, [], {}
        self.log: list[Recorded] = []

    def replayed(self, law: Law, drawn: Mapping[str, Any]) -> Exception | None:
        """What the law raises on these arguments. They are copied: the first run of them stays as it was."""
        self.failing = {name: _copied(value) for name, value in drawn.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hypothesis asks why `assume` is called outside of a test
            try:
                law.replay(self, self.failing)
            except UnsupportedCase:
                return None
            except Exception as broken:
                return broken
        return None

    def outputs(self, problem: Problem, **further: Any) -> tuple[Array, ...]:
        if further:  # dropout: what is right depends on what was dropped
            with self._noted(Recorded("dropout", problem=problem, options=further)):
                return super().outputs(problem, **further)
        with self._noted(Recorded("attention", problem=problem)) as call:
            parts = super().outputs(problem)
            call.got = dict(zip(("output", "log-sum-exp"), map(np.array, parts), strict=False))
            return parts

    def output_and_gradients(
        self, problem: Problem, between: Problem | None = None, **further: Any
    ) -> tuple[Array, dict[str, Array]]:
        if not further or between is not None:  # a script has no second call between the passes
            return super().output_and_gradients(problem, between, **further)
        with self._noted(Recorded("dropout gradients", problem=problem, options=further)):
            return super().output_and_gradients(problem, **further)

    def seeded(self, call: Recorded, seed: int) -> dict[str, Array]:
        """A call with dropout once more, from a seed, as a script begins."""
        assert call.problem is not None
        _seed(self, seed)
        if call.kind == "dropout":
            return {"output": super().outputs(call.problem, **call.options)[0]}
        output, gradients = super().output_and_gradients(call.problem, **call.options)
        return {"output": output, **gradients}

    def lse(self, problem: Problem) -> Bounded:
        received = super().lse(problem)
        exact = self.bound(problem.replace(return_lse=True))[1]
        self.log[-1].exact["log-sum-exp"] = Bounded(exact.value, received.errors)
        return received

    def native_call(self, problem: Problem, **further: Any) -> Any:
        with self._noted(Recorded("unchecked", problem=problem, options=further)):
            return super().native_call(problem, **further)

    def gradient_values(self, problem: Problem, *, views: bool = False) -> dict[str, Array]:
        options = {"views": True} if views else {}
        with self._noted(Recorded("gradients", problem=problem, options=options)) as call:
            gradients = super().gradient_values(problem, views=views)
            call.got = {f"gradient of {name}": np.array(x) for name, x in gradients.items()}
            return gradients

    def call(self, *arguments: Any, shape: tuple[int, ...], **options: Any) -> Array:
        kind = self.implementation.operation
        with self._noted(Recorded(kind, arguments=arguments, options=options, shape=shape)) as call:
            returned = super().call(*arguments, shape=shape, **options)
            call.got = {"result": np.array(returned)}
            return returned

    def call_parts(
        self, *arguments: Any, shapes: Mapping[str, tuple[int, ...]], **options: Any
    ) -> list[Array]:
        kind = self.implementation.operation
        with self._noted(Recorded(kind, arguments=arguments, options=options)) as call:
            returned = super().call_parts(*arguments, shapes=shapes, **options)
            call.got = {name: np.array(x) for name, x in zip(shapes, returned, strict=True)}
            return returned

    def call_updating(
        self, *arguments: Any, updated: int, shape: tuple[int, ...], **options: Any
    ) -> tuple[Array, list[Array]]:
        kind = self.implementation.operation
        with self._noted(Recorded(kind, arguments=arguments, options=options, shape=shape)) as call:
            returned, after = super().call_updating(*arguments, updated=updated, shape=shape, **options)
            call.got, call.after = {"result": np.array(returned)}, [np.array(x) for x in after]
            return returned, after

    def call_gradients(
        self, inputs: Mapping[str, Array], *rest: Any, upstream: Array | tuple[Array, ...],
        written: Sequence[str] = (), **options: Any,
    ) -> dict[str, Array]:  # fmt: skip
        every = upstream if isinstance(upstream, tuple) else (upstream,)
        given = Recorded(self.implementation.operation, arguments=(*inputs.values(), *rest), options=options,
                         upstream=_copied(every))  # fmt: skip
        with self._noted(given) as call:
            gradients = super().call_gradients(inputs, *rest, upstream=upstream, written=written, **options)
            call.got = {f"gradient of {name}": np.array(x) for name, x in gradients.items()}
            return gradients

    def within(self, got: Array, exact: Bounded) -> Bounded:
        """Another operation's results are judged as they came; a part of one, such as a sequence, is not."""
        call = self.log[-1] if self.log else None
        if call is not None and call.problem is None:
            names = [
                name for name, x in call.got.items() if name not in call.exact and same(x, np.asarray(got))
            ]
            call.exact.update({name: self._oracle_included(exact) for name in names[:1]})
        return super().within(got, exact)

    def judged(self, call: Recorded) -> dict[str, Bounded]:
        """The exact values of what a call gave, with their bounds."""
        if call.problem is None or not call.got:
            return call.exact
        if call.kind == "gradients":
            return {f"gradient of {name}": x for name, x in self.gradient_bounds(call.problem).items()}
        return {"output": self.bound(call.problem)[0], **call.exact}

    def reference(self, call: Recorded) -> Bounded | None:
        """What another operation should have given; None where that depends on more than the call."""
        operation = OTHERS[call.kind]
        told = operation.examples(self)[0].told
        if "scale" in told or call.upstream:
            return None
        example = Example(call.arguments, call.options, call.shape, told)
        caller = Caller(self, operation, Deadline(np.inf))
        computed = caller.computing(operation.exact, "result")(Observation(example, {}, {}, True))
        return None if computed is None else self._oracle_included(computed["result"])

    @contextlib.contextmanager
    def _noted(self, call: Recorded) -> Iterator[Recorded]:
        given, arguments = call.problem, call.arguments
        call.problem, call.arguments = _copied(given), _copied(arguments)
        call.layouts = {i: name for i, x in enumerate(arguments) if (name := layout_of(x))}
        self.log.append(call)
        try:
            yield call
        except Exception as error:
            call.error = error
            raise
        finally:
            if given is not None and call.problem is not None:
                call.written = [
                    n for n, x in arrays_of(call.problem).items() if not same(x, getattr(given, n))
                ]


def _seed(run: Run, seed: int) -> None:
    """The generators, as the first line of a script about dropout does."""
    if run.implementation.arrays == "torch":
        sys.modules["torch"].manual_seed(seed)
    np.random.seed(seed)


def _copied(value: Any) -> Any:
    """Arrays anew, each in the order of its axes in memory."""
    if isinstance(value, np.ndarray):
        return np.array(value, order="K")
    if isinstance(value, Problem):
        return value.replace(**{name: np.array(x, order="K") for name, x in arrays_of(value).items()})
    if isinstance(value, tuple | list):
        return type(value)(_copied(x) for x in value)
    return copy.copy(value)


def layout_of(x: Any) -> str:
    """The memory layout that an array has, by its name in `LAYOUTS`; nothing for one that is contiguous, or has another."""
    if not isinstance(x, np.ndarray) or x.flags.c_contiguous or x.dtype.kind == "b":
        return ""
    named = ((name, make(np.ascontiguousarray(x))) for name, make in LAYOUTS.items() if "zero" not in name)
    return next((name for name, other in named if other.strides == x.strides), "")


def arrays_of(problem: Problem) -> dict[str, Array]:
    """The arrays of a problem by name."""
    given = {name: getattr(problem, name) for name in ARRAYS}
    return {name: x for name, x in given.items() if x is not None}


def same(a: Array, b: Array) -> bool:
    """Bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
