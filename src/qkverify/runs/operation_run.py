"""Calls of the other operations, of which arguments may be written to, held for several calls, or differentiated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qkverify.contract import OPERATIONS
from qkverify.contract.operations import DESCRIBED, word
from qkverify.contract.signatures import parameters_of
from qkverify.errors import ContractError, UnsupportedCase
from qkverify.runs.framework_adapter import FrameworkAdapter, copied

SERVED = ("cached_attention", "paged_attention")  # operations of inference first


@dataclass(frozen=True)
class SharedArray:
    """A native array that several calls are given."""

    native: Any


class OperationRun(FrameworkAdapter):
    """Functions of any arguments; see `runs.Run`."""

    @property
    def defaults(self) -> dict[str, Any]:
        """What the function means by options that it is not given, where that is its choice: as found out, else the usual."""
        every = DESCRIBED[self.implementation.operation].defaults
        return {name: _meant(values, self.semantics.get(name)) for name, values in every.items()}

    def given(self, **options: Any) -> dict[str, Any]:
        """The keywords of a call: those of the options that the function takes. None leaves one out, unless it must be given."""
        given = {n: x for n, x in options.items() if x is not None and self.offers_parameter(n)}
        return {**{n: x for n, x in self._needed.items() if n not in given}, **given}

    @cached_property
    def _needed(self) -> dict[str, Any]:
        """The options whose value is otherwise the function's choice, and that its signature has no default for."""
        try:
            signature = parameters_of(self.implementation.function)
        except (ValueError, TypeError):  # it shows none
            return {}
        own = self.implementation.parameters
        empty = inspect.Parameter.empty
        return {
            name: values[0]
            for name, values in DESCRIBED[self.implementation.operation].defaults.items()
            if name in own and own[name] in signature and signature[own[name]].default is empty
        }

    def meant(self, **options: Any) -> dict[str, Any]:
        """What a call with `given(**options)` means: these, and the function's own defaults for what is left out."""
        return {**self.defaults, **self.given(**options)}

    def call(self, *arguments: Any, shape: tuple[int, ...], **options: Any) -> np.ndarray:
        """Another operation's function on NumPy arguments (arrays in the dtype under test): its result, checked."""
        self._note(arguments, options)
        returned = self.invoke([self._lent(x) for x in arguments], self._lent(options))
        return self._received(returned, self.implementation.operation, shape, None, heads=False)

    def call_parts(
        self, *arguments: Any, shapes: Mapping[str, tuple[int, ...]], **options: Any
    ) -> list[np.ndarray]:
        """As `call`, for a function that returns several arrays, whose shapes are given by name."""
        self._note(arguments, options)
        returned = self.invoke([self._lent(x) for x in arguments], self._lent(options))
        if not isinstance(returned, tuple) or len(returned) != len(shapes):
            raise ContractError(f"{self.implementation.name}: expected a tuple of {' and '.join(shapes)}")
        return [
            # A log-sum-exp is float32 beside an output in half precision.
            self._received(part, name, shape, None if name == "lse" else self.dtype, heads=False)
            for part, (name, shape) in zip(returned, shapes.items(), strict=True)
        ]

    def _note(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Keep what a call is given, unless it is held from one call to the next."""
        if not any(isinstance(x, SharedArray) for x in arguments):
            self.requests.append((arguments, {n: x for n, x in options.items() if x is not None}))

    def invoke(
        self,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        function: Callable[..., Any] | None = None,
    ) -> Any:
        """What another operation's function (or its gradient `function`) returns for native arguments, unchecked."""
        keywords = self._keywords(options, size=_last_axis(arguments))
        called = function or self.implementation.function
        if function is not None:
            keywords = self.implementation.keywords_of_vjp(keywords)
        return self._guarded(lambda: called(*arguments, **keywords))

    def function_call(self, arguments: Sequence[Any], options: Mapping[str, Any]) -> Callable[[], Any]:
        """The function on native arguments, as a call without any: for timing, with nothing of the harness inside."""
        keywords = self._keywords(options, size=_last_axis(arguments))
        called = self.implementation.function
        return lambda: called(*arguments, **keywords)

    def parts(self, returned: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Copies of the arrays that `invoke` gave. Raises ContractError where they are not these many of these shapes."""
        operation = self.implementation.operation
        if len(returned) != len(shapes):
            raise ContractError(
                f"{self.implementation.name}: {operation} returned {len(returned)} arrays, expected {len(shapes)}"
            )
        return [
            self._received(x, operation, shape, None, heads=False)
            for x, shape in zip(returned, shapes, strict=True)
        ]

    def call_updating(
        self, *arguments: Any, updated: int, shape: tuple[int, ...], **options: Any
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """As `call`, for a function that writes to its arguments from number `updated` on: (result, those it left behind).

        A function whose arrays cannot be written returns the new ones after the result.
        """
        self._note(arguments, options)
        native = [self._copied(x) for x in arguments]
        returned = self.invoke(native, self._lent(options))
        result, *after = returned if isinstance(returned, tuple) else (returned, *native[updated:])
        received = self._received(result, self.implementation.operation, shape, self.dtype, heads=False)
        arrays = [x for x in after if hasattr(x, "shape")]
        return received, [np.array(self.framework.to_numpy(x)) for x in arrays]

    def left_behind(self, *arguments: Any, shape: tuple[int, ...], **options: Any) -> list[np.ndarray]:
        """The arguments as a call leaves them, for a function that writes to some and must not write to others."""
        native = [self._copied(x) for x in arguments]
        returned = self.invoke(native, self._lent(options))
        result = returned[0] if isinstance(returned, tuple) else returned
        self._received(result, self.implementation.operation, shape, self.dtype, heads=False)
        return [np.array(self.framework.to_numpy(x)) for x in native]

    def held(self, array: np.ndarray) -> SharedArray:
        """A native array for several calls: what one writes the next one finds, and `array` shows and changes it.

        Raises UnsupportedCase where the framework's arrays cannot be written.
        """
        if self.device != "cpu" or not self.framework.WRITABLE:
            raise UnsupportedCase("the arrays share no memory that could be overwritten")
        return SharedArray(self.framework.from_numpy(array, self.device))

    def call_gradients(
        self,
        inputs: Mapping[str, Any],
        *rest: Any,
        upstream: np.ndarray | tuple[np.ndarray, ...],
        written: Sequence[str] = (),
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """The gradients of sum(upstream * function(*inputs, *rest)), in the shapes of what they belong to.

        They belong to each input in the dtype under test, and to each such array of an input that is a mapping (the weights of
        a layer), by name. A function of their own (`vjp`) takes upstream after the other arguments and gives them in this order.
        Of a function that returns several arrays, `upstream` has one for each; it may write to the arguments named in `written`,
        which belong to the values that they had before. Raises ContractError where another argument or an upstream gradient was
        written to, and UnsupportedCase for an operation of servers whose result has no gradient at all.
        """
        self._note((*inputs.values(), *rest), options)
        names = OPERATIONS[self.implementation.operation]
        every = upstream if isinstance(upstream, tuple) else (upstream,)
        arguments = (*inputs.values(), *rest)
        native, above = [self._copied(x) for x in arguments], tuple(self._copied(x) for x in every)
        leaves = self._differentiable(inputs, native)
        keywords = self._keywords(self._lent(options), size=_last_axis(arguments))
        self._asked.add("gradients")
        function, pull = self.implementation.function, self.implementation.vjp

        def call(**taken: Any) -> Any:
            taken |= {name: self.framework.duplicate(taken[name]) for name in written if name in taken}
            parts = zip(inputs, native, strict=False)
            replaced = [{n: taken.get(n, y) for n, y in x.items()} if isinstance(x, Mapping) else taken.get(name, x)
                   for name, x in parts]  # fmt: skip
            returned = function(*replaced, *native[len(inputs) :], **keywords)
            self.check_differentiated(returned)
            return returned

        if pull is not None:
            pulled = self.implementation.keywords_of_vjp(keywords)
            returned = self._guarded(lambda: pull(*native, *above, **pulled))
            gradients = dict(zip(leaves, returned, strict=True))
        else:
            given = above if isinstance(upstream, tuple) else above[0]
            gradients = self._guarded(lambda: self.framework.vjp(call, leaves, given)[1])
        for name, before, after in zip((*names, *["upstream"] * len(every)), (*arguments, *every), (*native, *above),
                                       strict=True):  # fmt: skip
            if name not in written:
                self._check_unwritten(before, after)
        return {name: self._received(x, f"gradient of {name}", tuple(leaves[name].shape), self.dtype, heads=False)
                for name, x in gradients.items()}  # fmt: skip

    def check_differentiated(self, returned: Any) -> None:
        """Raise UnsupportedCase for the result of a function of servers that has no gradient: a cache or pages are mostly read
        where nothing is learnt, so that a function that declares nothing of gradients need not give any."""
        implementation = self.implementation
        first = returned[0] if isinstance(returned, tuple) else returned
        served = implementation.operation in SERVED and implementation.differentiable is None
        if served and hasattr(first, "shape") and not self.framework.differentiable(first):
            raise UnsupportedCase(f"the result of {implementation.name} has no gradient")

    def _differentiable(self, inputs: Mapping[str, Any], native: Sequence[Any]) -> dict[str, Any]:
        """The native arrays in the dtype under test, by name."""
        leaves: dict[str, Any] = {}
        for (name, x), held in zip(inputs.items(), native, strict=False):
            if isinstance(x, Mapping):
                leaves |= self._differentiable(x, list(held.values()))
            elif x.dtype == self.numpy_dtype:
                leaves[name] = held
        return leaves

    def _check_unwritten(self, before: Any, after: Any) -> None:
        if isinstance(before, Mapping):
            for name, x in before.items():
                self._check_unwritten(x, after[name])
        elif (
            isinstance(before, np.ndarray)
            and np.array(before).tobytes() != np.array(self.framework.to_numpy(after)).tobytes()
        ):
            raise ContractError(
                f"{self.implementation.name}: computing gradients wrote to an argument or to the upstream gradient"
            )

    def _lent(self, x: Any) -> Any:
        """An argument as the framework holds it; so is each array of a mapping (the weights of a layer)."""
        if isinstance(x, Mapping):
            return {name: self._lent(value) for name, value in x.items()}
        return self.framework.from_numpy(x, self.device) if isinstance(x, np.ndarray) else x

    def _copied(self, x: Any) -> Any:
        """An argument of its own for the function, in the same memory layout; what is held stays what it is."""
        if isinstance(x, SharedArray):
            return x.native
        if isinstance(x, Mapping):
            return {name: self._copied(value) for name, value in x.items()}
        return self.framework.from_numpy(copied(x), self.device) if isinstance(x, np.ndarray) else x


def _last_axis(arguments: Sequence[Any]) -> int:
    """The last size of the first argument: D, of a query."""
    shape = getattr(arguments[0], "shape", ())
    return int(shape[-1]) if shape else 0


def _meant(values: tuple[Any, ...], said: str | None) -> Any:
    """The value that a word stands for: one of these, or another number than these; the first where nothing was said."""
    known = [x for x in values if word(x) == said]
    if known or said is None:
        return [*known, *values][0]
    return float(said) if isinstance(values[0], float) else values[0]
