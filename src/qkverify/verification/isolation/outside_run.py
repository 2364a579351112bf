"""A run in the process of the judge, whose calls a worker makes: problem, reference, bound and comparison are out of the
function's reach, whatever it changes in its own process.

What comes back is JSON: the bytes of each array, its shape and its dtype. Each is checked against what the call must give. Only
plain calls can be asked for; a law that holds native arrays itself ends as one that cannot be checked here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn
from unittest import SkipTest

import numpy as np

from qkverify.counterexamples import store
from qkverify.errors import ContractError, HarnessError, UnsupportedCase
from qkverify.probes import conventions
from qkverify.probes.conventions import Choice
from qkverify.problem.attention_problem import Problem
from qkverify.runs.attention_run import TRIPLE
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell

FORWARD = ("outputs", "call", "call_parts")
ASKED = (*FORWARD, "call_updating", "gradient_values", "call_gradients")  # of `Run`
# What a call may raise, as a law that catches it knows it; the nearest of these for any other.
KINDS = (
    ContractError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    Exception,
)
MODES = {"torch": ("", "", "no_grad", "inference_mode")}  # as in `frameworks`, none of which is imported here
OF_ATTENTION = (*TRIPLE, "bias", "sinks")  # what may have gradients
NOT_ASKABLE = "it needs more than plain calls"

Ask = Callable[
    [str, Any], Mapping[str, Any]
]  # method, encoded arguments -> the fields of `exchange.Returned`


class _Framework:
    """What a run may know of a framework that lives elsewhere."""

    REFUSALS: tuple[type[BaseException], ...] = ()
    restored = staticmethod(contextlib.nullcontext)

    def __init__(self, arrays: str) -> None:
        self.MODES = MODES.get(arrays, ("",))

    def lost(self, device: str) -> None:
        """The worker's end says so."""

    def __getattr__(self, name: str) -> NoReturn:
        raise SkipTest(NOT_ASKABLE)


class OutsideRun(Run):
    """A run whose results `ask` gives. Everything that would call the function here ends the law (see `NOT_ASKABLE`)."""

    def __init__(self, cell: Cell, choices: Mapping[str, Choice], ask: Ask) -> None:
        super().__init__(cell.implementation, cell.device, cell.dtype, conventions.settled(choices),
                         **conventions.precisions_of(choices, cell.dtype))  # fmt: skip
        self._ask = ask
        self.raising = ""  # what the last call raised
        self.ends: Callable[[], bool] = lambda: False  # whether no further result is asked for

    @property
    def drawn(self) -> dict[str, Any]:
        """The arguments of the law's failing example, by `store.encode`."""
        return {name: store.encode(value) for name, value in self.failing.items()}

    def _framework(self) -> Any:
        return _Framework(self.implementation.arrays)

    def outputs(self, problem: Problem, **further: Any) -> tuple[np.ndarray, ...]:
        """As `AttentionRun.outputs`."""
        self._check_taken(problem, further)
        s = problem.sizes
        shapes = {"output": (s["B"], s["H"], s["Q"], s["E"]), "log-sum-exp": (s["B"], s["H"], s["Q"])}
        expected = list(shapes)[: 2 if problem.return_lse else 1]
        parts = self._result("outputs", [problem], further)
        self._check_count(parts, len(expected))
        return tuple(
            self._checked(part, shapes[name], self.dtype if name == "output" else None, name)
            for part, name in zip(parts, expected, strict=True)
        )

    def gradient_values(self, problem: Problem, *, views: bool = False) -> dict[str, np.ndarray]:
        """As `GradientRun.gradient_values`."""
        self._check_taken(problem, {})
        gradients = self._result("gradient_values", [problem], {"views": views})
        every = isinstance(gradients, dict) and {*TRIPLE} <= gradients.keys() <= {*OF_ATTENTION}
        if not every or not all(hasattr(getattr(problem, name), "shape") for name in gradients):
            raise ContractError("the gradients of query, key and value were asked for, and others came back")
        return {
            name: self._checked(
                x,
                getattr(problem, name).shape,
                self.dtype if name != "sinks" else None,
                f"gradient of {name}",
            )
            for name, x in gradients.items()
        }

    def call(self, *arguments: Any, shape: tuple[int, ...], **options: Any) -> np.ndarray:
        """As `OperationRun.call`."""
        self._note(arguments, options)
        returned = self._result("call", arguments, {"shape": shape, **options})
        return self._checked(returned, shape, None, self.implementation.operation)

    def call_parts(
        self, *arguments: Any, shapes: Mapping[str, tuple[int, ...]], **options: Any
    ) -> list[np.ndarray]:
        """As `OperationRun.call_parts`."""
        self._note(arguments, options)
        parts = self._result("call_parts", arguments, {"shapes": dict(shapes), **options})
        self._check_count(parts, len(shapes))
        return [
            self._checked(x, shape, None if name == "lse" else self.dtype, name)
            for x, (name, shape) in zip(parts, shapes.items(), strict=True)
        ]

    def call_updating(
        self, *arguments: Any, updated: int, shape: tuple[int, ...], **options: Any
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """As `OperationRun.call_updating`."""
        self._note(arguments, options)
        parts = self._result("call_updating", arguments, {"updated": updated, "shape": shape, **options})
        self._check_count(parts, 2)
        after = [x for x in parts[1] if isinstance(x, np.ndarray)] if isinstance(parts[1], list) else []
        return self._checked(parts[0], shape, self.dtype, self.implementation.operation), after

    def call_gradients(
        self, inputs: Mapping[str, Any], *rest: Any, upstream: Any, **further: Any
    ) -> dict[str, np.ndarray]:
        """As `OperationRun.call_gradients`."""
        self._note((*inputs.values(), *rest), {})
        returned = self._result("call_gradients", [dict(inputs), *rest], {"upstream": upstream, **further})
        leaves = self._differentiable(inputs, list(inputs.values()))
        if not isinstance(returned, dict) or returned.keys() != leaves.keys():
            raise ContractError(f"the gradients of {', '.join(leaves)} were asked for, and others came back")
        return {
            n: self._checked(x, leaves[n].shape, self.dtype, f"gradient of {n}") for n, x in returned.items()
        }

    def _guarded(self, call: Callable[[], Any]) -> Any:
        raise SkipTest(NOT_ASKABLE)

    def _native(self, problem: Problem) -> Any:
        raise SkipTest(NOT_ASKABLE)

    def _check_taken(self, problem: Problem, further: Mapping[str, Any]) -> None:
        """Note the problem. Raises UnsupportedCase where `Run` would do so before it calls the function."""
        self.problems.append(problem)
        if rule := self.implementation.refuses(problem.sizes, problem.options):
            raise UnsupportedCase(f"{self.implementation.name} raises an error unless {rule}")
        options = dict(self.with_required_mask(problem).options)
        if {"mask", "bias"} <= options.keys() and self.one_parameter():
            options.pop("mask")
        self._keywords({**options, **further}, problem)

    def _result(self, method: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        question = store.encode([list(arguments), dict(options)])
        if self.ends() or _as_text(question):
            raise SkipTest(NOT_ASKABLE)
        self.calls += 1
        self.raising = ""
        if self.calls % 2:  # who remembers results by their shapes has this one then, and not the next one's
            self._ask(method, store.encode([[_in_reverse(x) for x in arguments], dict(options)]))
        answer = self._ask(method, question)
        if answer.get("refused") is not None:
            self.refused += 1
            self.refusal = self.refusal or str(answer["refused"])
            raise UnsupportedCase(str(answer["refused"]))
        if answer.get("raised") is not None:
            self.raising = str(answer["raised"])
            raise next((kind for kind in KINDS if kind.__name__ == answer.get("kind")), Exception)(
                self.raising
            )
        try:
            return store.decode(answer["returned"])
        except Exception as error:  # whatever a worker wrote
            raise HarnessError(f"what came back is no result: {error!r}") from error

    def _check_count(self, parts: Any, count: int) -> None:
        if not isinstance(parts, tuple | list) or len(parts) != count:
            raise ContractError(f"{count} results were asked for, and others came back")

    def _checked(self, array: Any, shape: Sequence[int], dtype: str | None, what: str) -> np.ndarray:
        allowed = (dtype, self.implementation.result_dtypes.get(dtype)) if dtype else ()
        fits = isinstance(array, np.ndarray) and array.shape == tuple(shape)
        fits = fits and (array.dtype.kind in "biuf" or array.dtype == NUMPY_DTYPES["bfloat16"])
        if not fits or (dtype and array.dtype.name not in allowed):
            got = (
                f"{array.dtype.name}{array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            )
            raise ContractError(f"the {what} is {got}, expected {dtype or 'numbers'} of shape {tuple(shape)}")
        self.compared.came_back(array, what)
        return np.asarray(array)


def _in_reverse(x: Any) -> Any:
    """An argument of the same shape, whose numbers come in reverse order."""
    if isinstance(x, Problem):
        return x.replace(**{name: np.flip(getattr(x, name)) for name in TRIPLE})
    if isinstance(x, Mapping):
        return {name: _in_reverse(value) for name, value in x.items()}
    return np.flip(x) if isinstance(x, np.ndarray) and x.dtype.kind not in "iub" else x


def _as_text(encoded: Any) -> bool:
    """Whether an argument could only be written as its text."""
    if isinstance(encoded, dict):
        return "text" in encoded or any(map(_as_text, encoded.values()))
    return isinstance(encoded, list) and any(map(_as_text, encoded))
