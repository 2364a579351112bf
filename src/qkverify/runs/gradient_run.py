"""Gradients of attention, and their bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.contract.axes import to_function
from qkverify.contract.empty_rows import UNDECIDED
from qkverify.errors import HarnessError, LawViolation, UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention_vjp import attention_vjp as reference_vjp
from qkverify.reference.attention_vjp_in_steps import attention_vjp_in_steps as vjp_in_steps
from qkverify.reference.scores import factor
from qkverify.rounding import Bounded, Precision
from qkverify.runs.attention_run import TRIPLE, AttentionRun, unjudged


class GradientRun(AttentionRun):
    """Forward and backward passes; see `runs.Run`."""

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
        gradients = self._guarded(
            lambda: self.framework.vjp(
                lambda **x: attention(**constant, **x), leaves, upstream, between=other
            )[1]
        )
        return self._gradients_received(gradients, problem)

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
            flipped = self.heads_first(flipped)
        upstream = self._laid_out(problem.upstream, None)
        try:
            gradients = self._guarded(lambda: self.framework.vjp(
                attention, native, upstream, between=lambda: self.framework.overwrite(written, flipped))[1])  # fmt: skip
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise UnsupportedCase("the framework notices") from error
        return self._gradients_received(gradients, problem)

    def second_gradients(self, problem: Problem, direction: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of <gradient of value, direction> by query and key: derivatives of a derivative.

        Raises UnsupportedCase where the implementation or its framework says that it cannot.
        """
        native, attention = self._differentiated(problem)
        self.problems.append(problem.replace(value=direction))  # whose first gradients they are
        upstream, along = self._laid_out(problem.upstream, None), self._laid_out(direction, None)
        gradients = self._guarded(lambda: self.framework.second(attention, native, upstream, "value", along))
        return self._gradients_received({name: gradients[name] for name in ("query", "key")}, problem)

    def _differentiated(self, problem: Problem, **further: Any) -> tuple[dict[str, Any], Callable[..., Any]]:
        """Native query, key and value, and the function of just these three that the framework differentiates."""
        self._needs_one_call()
        self.problems.append(problem)
        native, options = self._native(problem)
        return native, self._of_three(problem, {**options, **further})

    def _of_three(self, problem: Problem, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The function of query, key and value alone, about to be differentiated; the options are native."""
        keywords = self._keywords(options, problem)
        self._asked.add("gradients")
        function = self.implementation.entry
        return lambda query, key, value: function(query, key, value, **keywords)

    def _gradients_received(self, gradients: Mapping[str, Any], problem: Problem) -> dict[str, np.ndarray]:
        received = {}
        for name, x in gradients.items():
            shape = getattr(problem, name).shape
            received[name] = self._received(
                self.heads_first(x), f"gradient of {name}", shape, self.dtype, heads=False
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
        output, gradients = self._guarded(
            lambda: self.framework.vjp(attention, native, upstream, between=other)
        )
        first = output[0] if isinstance(output, tuple) else output
        shape = (*problem.query.shape[:3], problem.sizes["E"])
        received = self._gradients_received({name: gradients[name] for name in TRIPLE}, problem)
        return self._received(first, "output", shape, self.dtype), received

    def lse_gradients(self, problem: Problem, upstream: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of sum(upstream * log-sum-exp), upstream (B,H,Q), by query and key.

        Raises UnsupportedCase where the log-sum-exp is not differentiated, and LawViolation where it is declared to be.
        """
        native, attention = self._differentiated(problem.replace(return_lse=True))
        self._asked.add("lse_gradient")
        leaves = {name: native[name] for name in ("query", "key")}

        def lse(query: Any, key: Any) -> Any:
            log_sums = attention(query, key, native["value"])[1]
            if not self.framework.differentiable(log_sums):
                if self.semantics.get("lse_gradient") == "yes":
                    raise LawViolation("the log-sum-exp has no gradient, although it is declared to have one")
                raise UnsupportedCase(f"{self.implementation.name} does not differentiate the log-sum-exp")
            return log_sums

        above = np.ascontiguousarray(to_function(upstream, self.implementation.layout))
        gradients = self._guarded(
            lambda: self.framework.vjp(lse, leaves, self.framework.from_numpy(above, self.device))[1]
        )
        return self._gradients_received(gradients, problem)

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
            bounded = reference_vjp(*inputs, **options, delta=self.semantics["delta"])
            if self.semantics.get("softmax_gradient") == "steps" and problem.sinks is None:
                bounded = _also_in_steps(bounded, inputs, options)
            bounds = _judged({name: self._oracle_included(part) for name, part in bounded.items()}, problem)
            self._cache[key] = (bounds, problem)
        return dict(self._cache[key][0])

    def in_range(self, problem: Problem) -> bool:
        """Whether no number on the way to the gradients can pass the end of the format: zero times infinity is not zero."""
        return all(np.isfinite(part.errors).all() for part in self.gradient_bounds(problem).values())

    def _precision_of_gradients(self, problem: Problem) -> Precision:
        return self.gradient_precision.either_side(factor(problem.sizes["D"], problem.scale))

    def lse_gradient_bounds(self, problem: Problem, upstream: np.ndarray) -> dict[str, Bounded]:
        """The reference's gradients of sum(upstream * log-sum-exp) by query and key, with the bounds of this run's precision."""
        precision = self._precision_of_gradients(problem)
        silent = np.zeros((*problem.query.shape[:3], problem.sizes["E"]))
        query, value, above = (self.bounded(x, precision) for x in (problem.query, problem.value, silent))
        inputs = [query, self._keys(problem, precision), value, above]
        options = {k: v for k, v in self._bounded_options(problem, precision).items() if k != "return_lse"}
        bounded = reference_vjp(*inputs, **options, lse_upstream=self.bounded(upstream, precision))
        return _judged({name: self._oracle_included(bounded[name]) for name in ("query", "key")}, problem)

    def exact_gradients(self, problem: Problem) -> dict[str, np.ndarray]:
        """The reference's gradients, float64."""
        return {name: np.asarray(part.value) for name, part in self.gradient_bounds(problem).items()}

    def _gradient_call(self, problem: Problem, *, views: bool = False) -> Callable[[], dict[str, Any]]:
        if self.implementation.vjp is not None:
            call = self.callable(problem, "forward+backward")
            return lambda: {
                n: self.heads_first(g) for n, g in zip(("query", "key", "value"), call(), strict=True)
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
                {**options, **{n: x for n, x in given.items() if n not in native}}, problem
            )
            return self.implementation.entry(*(given[name] for name in native), **keywords)

        upstream = self._laid_out(problem.upstream, problem.layouts.get("upstream"))

        def call_framework() -> dict[str, Any]:
            grads = self.framework.vjp(attention, leaves, upstream)[1]
            return {
                n: self.heads_first(g) if n in native else g.reshape(getattr(problem, n).shape)
                for n, g in grads.items()
            }

        return call_framework


def _also_in_steps(
    bounds: dict[str, Bounded], inputs: Sequence[Bounded], options: Mapping[str, Any]
) -> dict[str, Bounded]:
    """The bounds of the formula, widened to those of its steps, each differentiated by itself, in either order."""
    options = {name: x for name, x in options.items() if name != "empty_rows"}
    for divided in ("weights", "output"):
        steps = vjp_in_steps(*inputs, **options, divided=divided)
        bounds = {
            name: Bounded(x.value, np.maximum(x.errors, steps[name].errors), x.precision)
            for name, x in bounds.items()
        }
    return bounds


def _judged(bounds: dict[str, Bounded], problem: Problem) -> dict[str, Bounded]:
    """Without a bound where a row that is NaN, or may be, passes NaN on: to its query, and to all that its heads share."""
    empty = ~problem.some_visible
    if problem.empty_row not in ("nan", UNDECIDED) or problem.sinks is not None or not empty.any():
        return bounds
    s = problem.sizes
    shared = np.any(empty.reshape(s["B"], s["G"], s["H"] // s["G"] * s["Q"]), axis=-1, keepdims=True)[
        ..., None
    ]  # (B,G,1,1)
    places = {"query": empty[..., None], "key": shared, "value": shared}
    return {name: unjudged(exact, places.get(name, True)) for name, exact in bounds.items()}
