"""One implementation on one device in one dtype, made callable: what a law holds in its hands.

    output = run(problem)              what came back, as a `Bounded`: value = got, error = the derived bound
    run.exact(problem)                 the reference's value, float64
    run.values(problem)                what came back, bit for bit
    run.gradients(problem)             {"query": Bounded, ...} for problem.upstream

Because a result carries its bound, a law is arithmetic: `run(problem).sum(-1)` has the bound of the sum, and two runs are
compared within the sum of both bounds. The run that is being checked is `active()`: strategies ask it what to generate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from qkverify import frameworks
from qkverify.contract import OPERATIONS, Implementation
from qkverify.errors import ContractError, HarnessError, LawViolation, UnsupportedCase
from qkverify.problems import LAYOUTS, Problem
from qkverify.reference.attention import attention as reference_attention
from qkverify.reference.attention_vjp import attention_vjp as reference_vjp
from qkverify.rounding import EXACT, FLOAT64, FORMATS, LN_2, Bounded, Precision

NUMPY_DTYPES: Mapping[str, Any] = {"float64": np.float64, "float32": np.float32, "float16": np.float16,
                                   "bfloat16": ml_dtypes.bfloat16}  # fmt: skip
DEFAULTS = {"causal_alignment": "bottom-right", "empty_rows": "zero", "masked_values": "read", "deterministic": "no",
            "batch_invariant": "no", "delta": "weights", "lse": "natural", "empty_lse": "-inf"}  # fmt: skip

TRIPLE = ("query", "key", "value")
SERVED = ("cached_attention", "paged_attention")  # operations of inference first

_active: ContextVar[Run | None] = ContextVar("active", default=None)


def active() -> Run | None:
    """The run that is being checked, or None outside of a check."""
    return _active.get()


@dataclass(frozen=True)
class Held:
    """A native array that several calls are given."""

    native: Any


class Run:
    """`semantics` are the conventions it is held to: declared ones, and what `conventions.detect` found."""

    def __init__(self, implementation: Implementation, device: str = "cpu", dtype: str = "float32",
                 semantics: Mapping[str, str] | None = None, precision: Precision | None = None,
                 gradient_precision: Precision | None = None) -> None:  # fmt: skip
        self.implementation = implementation
        self.device = device
        self.dtype = dtype
        self.framework = frameworks.get(implementation.arrays)
        self.semantics = {**DEFAULTS, **implementation.semantics, **(semantics or {})}
        self.precision = precision or _precision(implementation, device, dtype)
        self.gradient_precision = gradient_precision or _gradient_precision(
            implementation, dtype, self.precision
        )
        self.largest_margin = 0.0
        self.examples = 0
        self.refusals = 0
        self.calls = 0  # of the implementation: a law that made none has shown nothing
        self.used: set[str] = (
            set()
        )  # options, and "gradients", of calls that came back: the others are not verified
        self._asked: set[str] = set()  # those of the calls that are being prepared
        self.failing: dict[str, Any] = {}  # what was drawn for the example that failed last
        self.problems: list[
            Problem
        ] = []  # those of the current example: the first one is what a failure prints
        self._cache: dict[tuple[Any, ...], Any] = {}

    def __repr__(self) -> str:
        return self.cell

    @property
    def cell(self) -> str:
        """The name of this cell in test ids and reports."""
        return f"{self.implementation.name}-{self.device}-{self.dtype}"

    @property
    def numpy_dtype(self) -> Any:
        return NUMPY_DTYPES[self.dtype]

    def offers(self, *names: str) -> bool:
        """Whether the implementation offers all of these options."""
        return all(name in self.implementation.offers for name in names)

    def offers_parameter(self, name: str) -> bool:
        """Whether the function of another operation takes a keyword of this name."""
        return name in self.implementation.parameters

    @property
    def adds_in_order(self) -> bool:
        """Whether the sums of a gradient are made in one order, call by call: on a CPU, and wherever it is declared. On a GPU
        atomic additions come in any order (torch: "Memory Efficient attention defaults to a non-deterministic algorithm")."""
        return self.device == "cpu" or self.semantics["deterministic"] == "yes"

    @contextlib.contextmanager
    def activated(self) -> Iterator[Run]:
        """The run that strategies draw for. What its implementation does to settings of the process ends with it."""
        token = _active.set(self)
        try:
            with self.framework.restored():
                yield self
        finally:
            _active.reset(token)

    def begin_example(self) -> None:
        self.examples += 1
        self.problems = []
        self._cache = {}

    # -- attention ---------------------------------------------------------------------------------------------------

    def __call__(self, problem: Problem) -> Bounded:
        """The output (B,H,Q,E) with its bound."""
        return self._with_bound(self.values(problem), self.bound(problem)[0])

    def lse(self, problem: Problem) -> Bounded:
        """The log-sum-exp (B,H,Q) with its bound."""
        problem = problem if problem.return_lse else problem.replace(return_lse=True)
        got = self.outputs(problem)[1]
        return self._with_bound(got, self.lse_bound(problem, got.dtype.name))

    def lse_bound(self, problem: Problem, stored: str = "float64") -> Bounded:
        """The reference's log-sum-exp (B,H,Q) in the declared base, with the bound for a result that is stored in a dtype."""
        exact = self.bound(problem if problem.return_lse else problem.replace(return_lse=True))[1]
        if self.semantics["lse"] == "base2":
            exact = Bounded(exact.value, exact.errors, self.precision) / Bounded(
                LN_2, LN_2 * FLOAT64.unit, self.precision
            )
        if FORMATS[stored].unit <= self.precision.accumulate.unit:
            return Bounded(exact.value, exact.errors, EXACT)
        kept = +Bounded(exact.value, exact.errors, replace(self.precision, output=FORMATS[stored]), 0.0)
        hidden = np.isneginf(exact.value)  # stays what it is in every format
        return Bounded(exact.value, np.where(hidden, 0.0, kept.errors), EXACT)

    def values(self, problem: Problem) -> np.ndarray:
        """The output (B,H,Q,E) bit for bit, in the dtype under test."""
        return self.outputs(problem)[0]

    def outputs(self, problem: Problem, **further: Any) -> tuple[np.ndarray, ...]:
        """What the implementation returned, as (output,) or (output, lse), in the contract's shapes and dtypes.

        `further` are options beyond those of the problem: dropout=0.1.
        """
        self.problems.append(problem)
        with self.framework.inference(problem.mode):
            returned = self._guarded(self.callable(problem, **further))
        parts = returned if isinstance(returned, tuple) else (returned,)
        s = problem.sizes
        shapes = {"output": (s["B"], s["H"], s["Q"], s["E"]), "log-sum-exp": (s["B"], s["H"], s["Q"])}
        expected = list(shapes)[: 2 if problem.return_lse else 1]
        if len(parts) != len(expected):
            raise ContractError(
                f"{self.implementation.name} returned {len(parts)} values; expected {' and '.join(expected)}"
            )
        return tuple(
            self._received(part, name, shapes[name], self.dtype if name == "output" else None)
            for part, name in zip(parts, expected, strict=True)
        )

    def overwritten(self, problem: Problem, changed: Problem) -> tuple[Bounded, Bounded]:
        """The outputs of a call and of a second one on the same native arrays, overwritten in place with those of `changed`.

        Raises UnsupportedCase where the framework's arrays cannot be written.
        """
        self.problems.append(problem)
        native, call = self._held(problem)
        if not self._overwrite(native, problem):
            raise UnsupportedCase(f"arrays of {self.implementation.arrays} cannot be overwritten")
        shape = (*problem.query.shape[:3], problem.sizes["E"])

        def result() -> np.ndarray:
            with self.framework.inference(problem.mode):
                return self._received(self._guarded(call), "output", shape, self.dtype)

        first = result()
        self._overwrite(native, changed)
        second = result()
        return self.within(first, self.bound(problem)[0]), self.within(second, self.bound(changed)[0])

    def kept(self, problem: Problem, later: Problem) -> tuple[np.ndarray, np.ndarray]:
        """What a call returned, read at once and read again after another call and after its inputs were overwritten."""
        self.problems.append(problem)
        native, call = self._held(problem)
        with self.framework.inference(problem.mode):
            returned = self._guarded(call)
            output = returned[0] if isinstance(returned, tuple) else returned
            before = np.array(self.framework.to_numpy(output))
            self._guarded(self.callable(later))
        zeros = {name: np.zeros_like(getattr(problem, name)) for name in TRIPLE}
        self._overwrite(native, problem.replace(**zeros))
        return before, np.array(self.framework.to_numpy(output))

    def _held(self, problem: Problem) -> tuple[dict[str, Any], Callable[[], Any]]:
        """Query, key and value in arrays that nobody else has, and the call on them."""
        copies = {name: np.array(getattr(problem, name)) for name in TRIPLE}
        native, options = self._native(problem.replace(**copies, layouts={}))
        keywords = self._keywords(options, grouped=problem.group != 1)
        return native, lambda: self.implementation.function(*(native[name] for name in TRIPLE), **keywords)

    def _overwrite(self, native: Mapping[str, Any], other: Problem) -> bool:
        """Give native arrays the numbers of another problem, as an optimizer does: who counts writes sees it. False where they
        cannot be written."""
        arrays = ((self._heads_first(native[name]), getattr(other, name)) for name in TRIPLE)
        return all([self.framework.overwrite(array, numbers) for array, numbers in arrays])

    def from_one_buffer(self, problem: Problem, order: Sequence[int]) -> Bounded:
        """The output for query, key and value, all of one shape, that are slices of one buffer (B,L,3,H,D) in an order."""
        self.problems.append(problem)
        stacked = np.stack([getattr(problem, TRIPLE[i]).swapaxes(1, 2) for i in order], axis=2)
        buffer, at = self.framework.from_numpy(stacked, self.device), np.argsort(order)
        blhd = [buffer[:, :, int(i)] for i in at]
        arrays = blhd if self.implementation.layout == "BLHD" else [x.swapaxes(1, 2) for x in blhd]
        keywords = self._keywords(self._native(problem)[1], grouped=False)
        with self.framework.inference(problem.mode):
            returned = self._guarded(lambda: self.implementation.function(*arrays, **keywords))
        received = self._received(returned, "output", problem.query.shape, self.dtype)
        return self.within(received, self.bound(problem)[0])

    def native_call(self, problem: Problem) -> Any:
        """What the implementation returns, unchecked: for laws about calls that must fail."""
        self.problems.append(problem)
        with self.framework.inference(problem.mode):
            return self._guarded(self.callable(problem))

    def exact(self, problem: Problem) -> np.ndarray:
        """The reference's output (B,H,Q,E), float64."""
        return np.asarray(self.bound(problem)[0].value)

    def oracle(self, problem: Problem) -> Bounded:
        """The reference's output with its own rounding error: what a law computes from it carries that along."""
        exact = self.bound(problem)[0]
        return Bounded(exact.value, exact.errors * (FLOAT64.unit / self.precision.accumulate.unit), EXACT)

    def bound(self, problem: Problem) -> tuple[Bounded, ...]:
        """The reference's output, or (output, lse), with the bound of this run's precision. Computed once a problem."""
        key = ("forward", id(problem))
        if key not in self._cache:
            inputs = [
                self.bounded(problem.query),
                self._keys(problem, self.precision),
                self.bounded(problem.value),
            ]
            found = reference_attention(*inputs, **self._bounded_options(problem, self.precision))
            parts = found if isinstance(found, tuple) else (found,)
            self._cache[key] = (tuple(self._oracle_included(part) for part in parts), problem)
        parts = self._cache[key][0]
        return parts  # type: ignore[no-any-return]

    def bounded(self, array: Any, precision: Precision | None = None) -> Bounded:
        """Exact numbers of the dtype under test, as the reference takes them."""
        return Bounded(
            np.asarray(array, dtype=np.float64), 0.0, precision or self.precision, FORMATS[self.dtype].unit
        )

    def _keys(self, problem: Problem, precision: Precision) -> Bounded:
        """The keys as the reference takes them: exact, unless they are rounded before they meet the queries."""
        keys = self.bounded(problem.key, precision)
        if not precision.centred:
            return keys
        with np.errstate(invalid="ignore"):
            return Bounded(keys.value, precision.of_centred(keys.value), precision, keys.unit)

    def callable(self, problem: Problem, direction: str = "forward", **further: Any) -> Callable[[], Any]:
        """A call without arguments, all inputs native and in place: what is timed. `direction` as in results.Timing;
        `further` are options beyond those of the problem (`contract.FURTHER`)."""
        native, options = self._native(problem)
        keywords = self._keywords({**options, **further}, grouped=problem.group != 1)
        function = self.implementation.function
        query, key, value = native["query"], native["key"], native["value"]
        if direction == "forward":
            return lambda: function(query, key, value, **keywords)
        self._asked.add("gradients")
        upstream = self._laid_out(problem.upstream, problem.layouts.get("upstream"))
        if self.implementation.vjp is not None:
            pull = self.implementation.vjp
            if direction == "backward":
                raise UnsupportedCase("its gradient function makes both passes: time forward+backward")
            return lambda: pull(query, key, value, upstream, **keywords)

        def attention(query: Any, key: Any, value: Any) -> Any:
            return function(query, key, value, **keywords)

        if direction == "backward":
            again: Callable[[], Any] = self.framework.backward(attention, native, upstream)
            return again
        return lambda: self.framework.vjp(attention, native, upstream)

    # -- gradients ---------------------------------------------------------------------------------------------------

    def gradients(self, problem: Problem) -> dict[str, Bounded]:
        """The gradients for `problem.upstream` with their bounds, by the name of what they belong to."""
        exact = self.gradient_bounds(problem)
        return {
            name: self._with_bound(got, exact[name]) for name, got in self.gradient_values(problem).items()
        }

    def gradient_values(self, problem: Problem, *, views: bool = False) -> dict[str, np.ndarray]:
        """The gradients bit for bit: query, key, value, and bias where the framework differentiates by itself.

        With `views` the function is given views of what is differentiated. Raises UnsupportedCase where no framework
        stands between the two.
        """
        if problem.upstream is None:
            raise HarnessError("a law asks for gradients of a problem without an upstream gradient")
        if views:
            self._needs_one_call()
        self.problems.append(problem)
        returned = self._guarded(self._gradient_call(problem, views=views))
        return {
            name: self._received(
                x,
                f"gradient of {name}",
                getattr(problem, name).shape,
                self.dtype if name != "sinks" else None,
            )
            for name, x in returned.items()
        }

    def gradients_of(
        self, problem: Problem, wanted: Sequence[str] = TRIPLE, between: Problem | None = None
    ) -> dict[str, np.ndarray]:
        """The gradients of some of query, key and value, where the others are constants.

        With `between`, that problem's forward and backward pass is computed between the two passes of this one. Raises
        UnsupportedCase as `output_and_gradients` does.
        """
        native, attention = self._differentiated(problem)
        upstream = self._laid_out(problem.upstream, problem.layouts.get("upstream"))
        constant = {name: x for name, x in native.items() if name not in wanted}
        leaves = {name: native[name] for name in wanted}
        other = None if between is None else self.callable(between, "forward+backward")
        found = self._guarded(
            lambda: self.framework.vjp(
                lambda **x: attention(**constant, **x), leaves, upstream, between=other
            )[1]
        )
        return self._gradients_received(found, problem)

    def repeated_gradients(self, problem: Problem) -> list[dict[str, np.ndarray]]:
        """The gradients of one forward pass, pulled back twice. Raises UnsupportedCase as `output_and_gradients` does."""
        native, attention = self._differentiated(problem)
        upstream = self._laid_out(problem.upstream, problem.layouts.get("upstream"))
        pull = self._guarded(lambda: self.framework.backward(attention, native, upstream))
        return [self._gradients_received(self._guarded(pull)[1], problem) for _ in range(2)]

    def kept_gradients(self, problem: Problem, later: Problem) -> list[dict[str, np.ndarray]]:
        """The gradients of a call, read at once and read again after those of another."""
        self.problems.append(problem)

        def read() -> dict[str, np.ndarray]:
            return {name: np.array(self.framework.to_numpy(x)) for name, x in returned.items()}

        returned = self._guarded(self._gradient_call(problem))
        before = read()
        self._guarded(self._gradient_call(later))
        return [before, read()]

    def gradients_of_overwritten(self, problem: Problem, name: str) -> dict[str, np.ndarray]:
        """The gradients of a problem of which an argument is overwritten between the two passes, by itself in another order.

        Raises UnsupportedCase where the framework notices that, or where its arrays cannot be written.
        """
        self._needs_one_call()
        if not self.framework.WRITABLE:
            raise UnsupportedCase("the arrays cannot be written")
        self.problems.append(problem)
        native, options = self._native(problem)
        written = {**native, **options}.get(name)
        if written is None:
            raise UnsupportedCase(f"{name} is part of another argument")
        attention = self._of_three(problem, options)
        flipped = np.flip(getattr(problem, name))
        if name in TRIPLE:
            flipped = self._heads_first(flipped)
        upstream = self._laid_out(problem.upstream, None)
        try:
            found = self._guarded(lambda: self.framework.vjp(
                attention, native, upstream, between=lambda: self.framework.overwrite(written, flipped))[1])  # fmt: skip
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise UnsupportedCase("the framework notices") from error
        return self._gradients_received(found, problem)

    def second_gradients(self, problem: Problem, direction: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of <gradient of value, direction> by query and key: derivatives of a derivative.

        Raises UnsupportedCase where the implementation or its framework says that it cannot.
        """
        native, attention = self._differentiated(problem)
        upstream, along = self._laid_out(problem.upstream, None), self._laid_out(direction, None)
        found = self._guarded(lambda: self.framework.second(attention, native, upstream, "value", along))
        return self._gradients_received({name: found[name] for name in ("query", "key")}, problem)

    def _differentiated(self, problem: Problem, **further: Any) -> tuple[dict[str, Any], Callable[..., Any]]:
        """Native query, key and value, and the function of just these three that the framework differentiates."""
        self._needs_one_call()
        self.problems.append(problem)
        native, options = self._native(problem)
        return native, self._of_three(problem, {**options, **further})

    def _of_three(self, problem: Problem, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The function of query, key and value alone, about to be differentiated; the options are native."""
        keywords = self._keywords(options, grouped=problem.group != 1)
        self._asked.add("gradients")
        function = self.implementation.function
        return lambda query, key, value: function(query, key, value, **keywords)

    def _gradients_received(self, found: Mapping[str, Any], problem: Problem) -> dict[str, np.ndarray]:
        received = {}
        for name, x in found.items():
            shape = getattr(problem, name).shape
            received[name] = self._received(
                self._heads_first(x), f"gradient of {name}", shape, self.dtype, heads=False
            )
        return received

    def output_and_gradients(
        self, problem: Problem, between: Problem | None = None, **further: Any
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The output and the gradients of query, key and value of one and the same call, bit for bit.

        With `between`, that problem's output is computed between the two passes. `further` are options beyond those of the
        problem, for both. Raises UnsupportedCase where the implementation computes output and gradients in two calls.
        """
        native, attention = self._differentiated(problem, **further)
        upstream = self._laid_out(problem.upstream, problem.layouts.get("upstream"))
        other = None if between is None else self.callable(between, **further)
        output, found = self._guarded(lambda: self.framework.vjp(attention, native, upstream, between=other))
        first = output[0] if isinstance(output, tuple) else output
        shape = (*problem.query.shape[:3], problem.sizes["E"])
        received = self._gradients_received({name: found[name] for name in TRIPLE}, problem)
        return self._received(first, "output", shape, self.dtype), received

    def lse_gradients(self, problem: Problem, upstream: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of sum(upstream * log-sum-exp), upstream (B,H,Q), by query and key.

        Raises UnsupportedCase where the log-sum-exp is not differentiated, and LawViolation where it is declared to be.
        """
        native, attention = self._differentiated(problem.replace(return_lse=True))
        self._asked.add("lse_gradient")
        leaves = {name: native[name] for name in ("query", "key")}

        def lse(query: Any, key: Any) -> Any:
            found = attention(query, key, native["value"])[1]
            if not self.framework.differentiable(found):
                if self.semantics.get("lse_gradient") == "yes":
                    raise LawViolation("the log-sum-exp has no gradient, and is declared to have one")
                raise UnsupportedCase(f"{self.implementation.name} does not differentiate the log-sum-exp")
            return found

        above = np.ascontiguousarray(
            upstream.swapaxes(1, 2) if self.implementation.layout == "BLHD" else upstream
        )
        found = self._guarded(
            lambda: self.framework.vjp(lse, leaves, self.framework.from_numpy(above, self.device))[1]
        )
        return self._gradients_received(found, problem)

    def _needs_one_call(self) -> None:
        if self.implementation.vjp is not None:
            raise UnsupportedCase(f"{self.implementation.name} computes output and gradients in two calls")

    def gradient_bounds(self, problem: Problem) -> dict[str, Bounded]:
        """The reference's gradients with the bounds of this run's precision."""
        key = ("gradients", id(problem))
        if key not in self._cache:
            precision = self._precision_of_gradients(problem)
            query, value, upstream = (
                self.bounded(x, precision) for x in (problem.query, problem.value, problem.upstream)
            )
            inputs = [query, self._keys(problem, precision), value, upstream]
            options = {
                k: v for k, v in self._bounded_options(problem, precision).items() if k != "return_lse"
            }
            found = reference_vjp(*inputs, **options, delta=self.semantics["delta"])
            self._cache[key] = ({name: self._oracle_included(part) for name, part in found.items()}, problem)
        return dict(self._cache[key][0])

    def in_range(self, problem: Problem) -> bool:
        """Whether no number on the way to the gradients can pass the end of the format: zero times infinity is not zero."""
        return all(np.isfinite(part.errors).all() for part in self.gradient_bounds(problem).values())

    def _precision_of_gradients(self, problem: Problem) -> Precision:
        scale = problem.scale if problem.scale is not None else max(problem.sizes["D"], 1) ** -0.5
        return self.gradient_precision.either_side(scale)

    def lse_gradient_bounds(self, problem: Problem, upstream: np.ndarray) -> dict[str, Bounded]:
        """The reference's gradients of sum(upstream * log-sum-exp) by query and key, with the bounds of this run's precision."""
        precision = self._precision_of_gradients(problem)
        silent = np.zeros((*problem.query.shape[:3], problem.sizes["E"]))
        query, value, above = (self.bounded(x, precision) for x in (problem.query, problem.value, silent))
        inputs = [query, self._keys(problem, precision), value, above]
        options = {k: v for k, v in self._bounded_options(problem, precision).items() if k != "return_lse"}
        found = reference_vjp(*inputs, **options, lse_upstream=self.bounded(upstream, precision))
        return {name: self._oracle_included(found[name]) for name in ("query", "key")}

    def exact_gradients(self, problem: Problem) -> dict[str, np.ndarray]:
        """The reference's gradients, float64."""
        return {name: np.asarray(part.value) for name, part in self.gradient_bounds(problem).items()}

    def _gradient_call(self, problem: Problem, *, views: bool = False) -> Callable[[], dict[str, Any]]:
        if self.implementation.vjp is not None:
            call = self.callable(problem, "forward+backward")
            return lambda: {
                n: self._heads_first(g) for n, g in zip(("query", "key", "value"), call(), strict=True)
            }
        native, options = self._native(problem)
        self._asked.add("gradients")
        leaves = dict(native)
        if "bias" in options and not ("mask" in problem.options and self.one_parameter()):
            leaves["bias"] = options.pop("bias")
        if "sinks" in options:
            leaves["sinks"] = options.pop("sinks")

        def attention(**given: Any) -> Any:
            given = {name: x[...] for name, x in given.items()} if views else given
            keywords = self._keywords(
                {**options, **{n: x for n, x in given.items() if n not in native}},
                grouped=problem.group != 1,
            )
            return self.implementation.function(*(given[name] for name in native), **keywords)

        upstream = self._laid_out(problem.upstream, problem.layouts.get("upstream"))

        def call_framework() -> dict[str, Any]:
            grads = self.framework.vjp(attention, leaves, upstream)[1]
            return {n: self._heads_first(g) if n in native else g for n, g in grads.items()}

        return call_framework

    # -- other operations --------------------------------------------------------------------------------------------

    def call(self, *arguments: Any, shape: tuple[int, ...], **options: Any) -> np.ndarray:
        """Another operation's function on NumPy arguments (arrays in the dtype under test): its result, checked."""
        returned = self.invoke([self._lent(x) for x in arguments], self._lent(options))
        return self._received(returned, self.implementation.operation, shape, None, heads=False)

    def call_parts(
        self, *arguments: Any, shapes: Mapping[str, tuple[int, ...]], **options: Any
    ) -> list[np.ndarray]:
        """As `call`, for a function that returns several arrays, whose shapes are given by name."""
        returned = self.invoke([self._lent(x) for x in arguments], self._lent(options))
        if not isinstance(returned, tuple) or len(returned) != len(shapes):
            raise ContractError(f"{self.implementation.name}: expected a tuple of {' and '.join(shapes)}")
        return [
            self._received(part, name, shape, self.dtype, heads=False)
            for part, (name, shape) in zip(returned, shapes.items(), strict=True)
        ]

    def invoke(
        self,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        function: Callable[..., Any] | None = None,
    ) -> Any:
        """What another operation's function (or its gradient `function`) returns for native arguments, unchecked."""
        keywords = self._keywords(options)
        called = function or self.implementation.function
        return self._guarded(lambda: called(*arguments, **keywords))

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

    def held(self, array: np.ndarray) -> Held:
        """A native array for several calls: what one writes the next one finds, and `array` shows and changes it.

        Raises UnsupportedCase where the framework's arrays cannot be written.
        """
        if self.device != "cpu" or not self.framework.WRITABLE:
            raise UnsupportedCase("the arrays share no memory that could be overwritten")
        return Held(self.framework.from_numpy(array, self.device))

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
        names = OPERATIONS[self.implementation.operation]
        every = upstream if isinstance(upstream, tuple) else (upstream,)
        arguments = (*inputs.values(), *rest)
        native, above = [self._copied(x) for x in arguments], tuple(self._copied(x) for x in every)
        leaves = self._differentiable(inputs, native)
        keywords = self._keywords(self._lent(options))
        self._asked.add("gradients")
        function, pull = self.implementation.function, self.implementation.vjp

        def call(**taken: Any) -> Any:
            taken |= {name: self.framework.duplicate(taken[name]) for name in written if name in taken}
            parts = zip(inputs, native, strict=False)
            own = [{n: taken.get(n, y) for n, y in x.items()} if isinstance(x, Mapping) else taken.get(name, x)
                   for name, x in parts]  # fmt: skip
            returned = function(*own, *native[len(inputs) :], **keywords)
            self._check_differentiated(returned)
            return returned

        if pull is not None:
            returned = self._guarded(lambda: pull(*native, *above, **keywords))
            found = dict(zip(leaves, returned, strict=True))
        else:
            given = above if isinstance(upstream, tuple) else above[0]
            found = self._guarded(lambda: self.framework.vjp(call, leaves, given)[1])
        for name, before, after in zip((*names, *["upstream"] * len(every)), (*arguments, *every), (*native, *above),
                                       strict=True):  # fmt: skip
            if name not in written:
                self._check_unwritten(before, after)
        return {name: self._received(x, f"gradient of {name}", tuple(leaves[name].shape), self.dtype, heads=False)
                for name, x in found.items()}  # fmt: skip

    def _check_differentiated(self, returned: Any) -> None:
        """A cache or pages are mostly read where nothing is learnt: who declares nothing of gradients need not give any."""
        one = self.implementation
        first = returned[0] if isinstance(returned, tuple) else returned
        served = one.operation in SERVED and one.differentiable is None
        if served and hasattr(first, "shape") and not self.framework.differentiable(first):
            raise UnsupportedCase(f"the result of {one.name} has no gradient")

    def _differentiable(self, inputs: Mapping[str, Any], native: Sequence[Any]) -> dict[str, Any]:
        """The native arrays in the dtype under test, by name."""
        found: dict[str, Any] = {}
        for (name, x), held in zip(inputs.items(), native, strict=False):
            if isinstance(x, Mapping):
                found |= self._differentiable(x, list(held.values()))
            elif x.dtype == self.numpy_dtype:
                found[name] = held
        return found

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
        if isinstance(x, Held):
            return x.native
        if isinstance(x, Mapping):
            return {name: self._copied(value) for name, value in x.items()}
        return self.framework.from_numpy(copied(x), self.device) if isinstance(x, np.ndarray) else x

    def _keywords(self, options: Mapping[str, Any], *, grouped: bool = False) -> dict[str, Any]:
        """The call's own keywords, and a note of what it is asked for."""
        keywords = self.implementation.keywords(options, grouped=grouped)
        self._asked |= {name for name, value in options.items() if value is not None and value is not False}
        return keywords

    def within(self, got: np.ndarray, exact: Bounded) -> Bounded:
        """`got` with the bound that was derived beside `exact`."""
        return self._with_bound(got, self._oracle_included(exact))

    # -- the boundary ------------------------------------------------------------------------------------------------

    def _native(self, problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
        native = {
            name: self._laid_out(getattr(problem, name), problem.layouts.get(name))
            for name in ("query", "key", "value")
        }
        options = dict(problem.options)
        # One parameter takes either: the mask becomes -inf in the bias.
        if {"mask", "bias"} <= options.keys() and self.one_parameter():
            options["bias"] = np.where(options.pop("mask"), options["bias"], -np.inf).astype(self.numpy_dtype)
        for name, value in options.items():
            if isinstance(value, np.ndarray):
                options[name] = self.framework.from_numpy(
                    _relaid(value, problem.layouts.get(name)), self.device
                )
        return native, options

    def one_parameter(self) -> bool:
        """Whether mask and bias are given by one parameter of the function."""
        names = self.implementation.parameters
        return names.get("mask") == names.get("bias")

    def _laid_out(self, array: Any, layout: str | None) -> Any:
        if self.implementation.layout == "BLHD":
            array = np.asarray(array).swapaxes(1, 2)
        return self.framework.from_numpy(_relaid(array, layout), self.device)

    def _heads_first(self, native: Any) -> Any:
        return native.swapaxes(1, 2) if self.implementation.layout == "BLHD" else native

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """A refusal of the framework is a refusal of the implementation; anything else passes through."""
        self.calls += 1
        try:
            returned = call()
            self.used |= self._asked
            return returned
        except self.framework.REFUSALS as refusal:
            raise UnsupportedCase(str(refusal)) from refusal
        finally:
            self._asked.clear()

    def _received(
        self, native: Any, what: str, shape: tuple[int, ...], dtype: str | None, heads: bool = True
    ) -> np.ndarray:
        name = self.implementation.name
        if not hasattr(native, "shape"):
            raise ContractError(
                f"{name}: the {what} is a {type(native).__name__}, expected an array of shape {shape}"
            )
        if heads and self.implementation.layout == "BLHD" and what in ("output", "log-sum-exp"):
            native = native.swapaxes(1, 2) if native.ndim >= 3 else native
        if tuple(native.shape) != tuple(shape):
            raise ContractError(
                f"{name}: the {what} has shape {tuple(native.shape)}, expected {tuple(shape)}"
            )
        if dtype is not None and self.framework.dtype_of(native) != dtype:
            raise ContractError(
                f"{name}: the {what} has dtype {self.framework.dtype_of(native)}, expected {dtype}"
            )
        return np.array(self.framework.to_numpy(native))  # a copy: the next call may write to the same buffer

    # -- bounds ------------------------------------------------------------------------------------------------------

    def _bounded_options(self, problem: Problem, precision: Precision) -> dict[str, Any]:
        """The reference's options. A scale or cap is rounded to the working precision before it is used."""
        options = problem.reference_options
        options.setdefault("scale", problem.sizes["D"] ** -0.5 if problem.sizes["D"] else 1.0)
        unit = precision.accumulate.unit
        for name in ("scale", "softcap"):
            if name in options:
                options[name] = Bounded(options[name], np.asarray(abs(options[name]) * unit), precision)
        for name in ("bias", "alibi_slopes", "sinks"):
            if name in options:
                options[name] = self.bounded(options[name], precision)
        return options

    def _oracle_included(self, exact: Bounded) -> Bounded:
        """The reference rounds as well, as a float64 implementation would: its share of the bound is added."""
        error = exact.errors * (1.0 + FLOAT64.unit / self.precision.accumulate.unit)
        if np.isnan(error).any():  # inf * 0 on the way: nothing can be said
            error = np.where(np.isnan(error) & ~np.isnan(exact.value), np.inf, error)
        return Bounded(exact.value, error, EXACT)

    def _with_bound(self, got: np.ndarray, exact: Bounded) -> Bounded:
        value = got.astype(np.float64)
        if not np.isfinite(value).all():  # where nothing can be said, NaN would say something in what follows
            value = np.where(np.isposinf(exact.errors) & ~np.isfinite(value), 0.0, value)
        return Bounded(value, exact.error, EXACT)


def _precision(implementation: Implementation, device: str, dtype: str) -> Precision:
    """What is declared; else plain arithmetic in full precision, and a fused kernel's in half precision."""
    declared = implementation.declared_precision(device, dtype)
    if isinstance(declared, Precision):
        return declared
    if dtype in ("float64", "float32") and declared != "tf32":
        return Precision.plain(dtype)
    return Precision.named(declared or "fused", dtype)


def _gradient_precision(implementation: Implementation, dtype: str, forward: Precision) -> Precision:
    """What is declared for gradients, else the output's."""
    declared = implementation.precision.get(f"{dtype}-gradients")
    return (
        declared
        if isinstance(declared, Precision)
        else Precision.named(declared, dtype)
        if declared
        else forward
    )


def _relaid(array: Any, layout: str | None) -> Any:
    return array if layout is None else LAYOUTS[layout](np.asarray(array))


def copied(view: np.ndarray) -> np.ndarray:
    """The same numbers in other memory, with the same strides; what lies around them comes along."""
    root = view
    while isinstance(root.base, np.ndarray):
        root = root.base
    if root is view or not view.size or not root.flags.c_contiguous:
        return np.array(view)
    offset = view.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return np.ndarray(view.shape, view.dtype, root.copy(), offset, view.strides)
