"""Calls of attention, and their bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qkverify.contract.axes import to_function
from qkverify.errors import ContractError, UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import attention as reference_attention
from qkverify.reference.scores import factor
from qkverify.rounding import EXACT, FLOAT64, FORMATS, LN_2, Bounded, Precision
from qkverify.runs.framework_adapter import FrameworkAdapter

TRIPLE = ("query", "key", "value")


def unjudged(exact: Bounded, where: np.ndarray | bool) -> Bounded:
    """With an infinite bound in some places, of which nothing is said."""
    return Bounded(exact.value, np.where(where, np.inf, exact.errors), EXACT)


class AttentionRun(FrameworkAdapter):
    """Outputs, log-sum-exps, and what is exact; see `runs.Run`."""

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
        self.problems.append(changed)
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
        keywords = self._keywords(options, problem)
        return native, lambda: self.implementation.entry(*(native[name] for name in TRIPLE), **keywords)

    def _overwrite(self, native: Mapping[str, Any], other: Problem) -> bool:
        """Give native arrays the numbers of another problem, as an optimizer does: who counts writes sees it. False where they
        cannot be written."""
        arrays = ((self.heads_first(native[name]), getattr(other, name)) for name in TRIPLE)
        return all([self.framework.overwrite(array, numbers) for array, numbers in arrays])

    def from_one_buffer(self, problem: Problem, order: Sequence[int]) -> Bounded:
        """The output for query, key and value, all of one shape, that are slices of one buffer (B,L,3,H,D) in an order."""
        self.problems.append(problem)
        stacked = np.stack([getattr(problem, TRIPLE[i]).swapaxes(1, 2) for i in order], axis=2)
        buffer, at = self.framework.from_numpy(stacked, self.device), np.argsort(order)
        blhd = [buffer[:, :, int(i)] for i in at]
        arrays = [to_function(x.swapaxes(1, 2), self.implementation.layout) for x in blhd]
        keywords = self._keywords(self._native(problem)[1], problem)
        with self.framework.inference(problem.mode):
            returned = self._guarded(lambda: self.implementation.entry(*arrays, **keywords))
        received = self._received(returned, "output", problem.query.shape, self.dtype)
        return self.within(received, self.bound(problem)[0])

    def native_call(self, problem: Problem, **further: Any) -> Any:
        """What the implementation returns, unchecked: for first calls, and for laws about calls that must fail."""
        self.problems.append(problem)
        with self.framework.inference(problem.mode):
            return self._guarded(self.callable(problem, **further))

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
            precision = self.precision.with_scaled_inputs(factor(problem.sizes["D"], problem.scale))
            query, value = (self.bounded(x, precision) for x in (problem.query, problem.value))
            inputs = [query, self._keys(problem, precision), value]
            bounded = reference_attention(*inputs, **self._bounded_options(problem, precision))
            parts = bounded if isinstance(bounded, tuple) else (bounded,)
            output, *lse = (self._oracle_included(part) for part in parts)
            if not problem.judges_empty_rows:
                output = unjudged(output, ~problem.some_visible[..., None])
            self._cache[key] = ((output, *lse), problem)
        parts = self._cache[key][0]
        return parts  # type: ignore[no-any-return]

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
        return self.callables(problem, direction, **further)[0]

    def callables(
        self,
        problem: Problem,
        direction: str = "forward",
        arrays: Sequence[Mapping[str, Any]] = ({},),
        **further: Any,
    ) -> list[Callable[[], Any]]:
        """As `callable`, a call for each of `arrays`: native query, key, value and upstream that stand for the problem's."""
        native, options = self._native(problem)
        keywords = self._keywords({**options, **further}, problem)
        if direction != "forward":
            native["upstream"] = self._laid_out(problem.upstream, problem.layouts.get("upstream"))
        return [self._call(direction, {**native, **given}, keywords) for given in arrays]

    def _call(
        self, direction: str, native: Mapping[str, Any], keywords: Mapping[str, Any]
    ) -> Callable[[], Any]:
        function = self.implementation.entry
        query, key, value = native["query"], native["key"], native["value"]
        if direction == "forward":
            return lambda: function(query, key, value, **keywords)
        self._asked.add("gradients")
        upstream = native["upstream"]
        if self.implementation.vjp is not None:
            pull = self.implementation.vjp
            if direction == "backward":
                raise UnsupportedCase("its gradient function makes both passes: time forward+backward")
            keywords = self.implementation.keywords_of_vjp(keywords)
            return lambda: pull(query, key, value, upstream, **keywords)

        def attention(query: Any, key: Any, value: Any) -> Any:
            return function(query, key, value, **keywords)

        inputs = {name: native[name] for name in TRIPLE}
        if direction == "backward":
            again: Callable[[], Any] = self.framework.backward(attention, inputs, upstream)
            return again
        return lambda: self.framework.vjp(attention, inputs, upstream)
