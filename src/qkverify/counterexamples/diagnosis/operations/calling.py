"""Calls of another operation's function on examples, and what the reference and its mistakes make of the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qkverify.contract import OPERATIONS
from qkverify.counterexamples.diagnosis.claims import Observation, Parts
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.fitting import Predict, agrees
from qkverify.counterexamples.diagnosis.operations.kind import (
    LEFT,
    Compute,
    Example,
    Mistakes,
    OperationKind,
    normal,
)
from qkverify.problem.attention_problem import LAYOUTS
from qkverify.rounding import Bounded
from qkverify.runs.exact_positions import base_of
from qkverify.runs.run import Run

ASPECTS: Mapping[str, str] = {"result": "the result equals {}", "gradients": "the gradients are {}"}
Array = np.ndarray


@dataclass
class Caller:
    """Calls of one function on the examples of its operation, until the time is up."""

    run: Run
    operation: OperationKind
    until: Deadline
    written: set[int] = field(default_factory=set)  # numbers of arguments that a call has changed
    _expected: dict[tuple[int, str], Parts | None] = field(default_factory=dict)

    @cached_property
    def examples(self) -> list[Example]:
        """Those of the operation, made once."""
        return self.operation.examples(self.run)

    @property
    def differentiates(self) -> bool:
        """Whether gradients are offered, and known here."""
        return self.operation.gradients is not None and self.run.offers("gradients")

    def observations(self, aspect: str) -> list[Observation]:
        """What came back on the examples; wrong ones first. Nothing for gradients that are not offered."""
        if aspect == "gradients" and not self.differentiates:
            return []
        half = self.until.half()
        observations = []
        for example in self.examples:
            if half.over:
                break
            observations.append(self.observe(example, aspect))
        return sorted(
            [observation for observation in observations if observation is not None],
            key=lambda observation: observation.right,
        )

    def mistakes(self, aspect: str) -> list[tuple[str, Predict]]:
        """The table of mistakes, as what it predicts of an observation."""
        known: Mistakes = self.operation.mistakes
        if aspect == "gradients" and self.operation.gradients is not None:
            known = self.operation.gradients.mistakes
        return [(text, self.computing(compute, aspect)) for text, compute in known]

    def observe(self, example: Example, aspect: str, layout: str = "") -> Observation | None:
        """One call; None where it raises, or where the reference has no result. The function gets copies."""
        expected = self._exact(example, aspect)
        lent = [_laid_out(x, layout) if isinstance(x, np.ndarray) else x for x in example.arguments]
        try:
            got = self._called(example, aspect, lent)
        except Exception:  # what the implementation refuses says nothing
            return None
        if expected is None:
            return None
        self.written |= {i for i, (a, b) in enumerate(zip(lent, example.arguments, strict=True))
                         if isinstance(a, np.ndarray) and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")}  # fmt: skip
        got = {name: x if example.judged is None else x[example.judged] for name, x in got.items()}
        bounds = {n: Bounded(x.value, self.run.within(got[n], x).errors) for n, x in expected.items()}
        return Observation(example, got, bounds, all(bool(agrees(got[n], bounds[n]).all()) for n in got))

    def _exact(self, example: Example, aspect: str) -> Parts | None:
        """What the reference gives, computed once an example."""
        key = (id(example), aspect)
        if key not in self._expected:
            operation = self.operation
            gradients = operation.gradients if aspect == "gradients" else None
            exact = operation.exact if gradients is None else gradients.exact
            self._expected[key] = self.computing(exact, aspect)(Observation(example, {}, {}, True))
        return self._expected[key]

    def _called(self, example: Example, aspect: str, lent: list[Any]) -> dict[str, Array]:
        options = self.run.given(**example.options, **example.asked)
        if aspect == "gradients":
            gradients = self.operation.gradients
            assert gradients is not None
            inputs = dict(zip(gradients.of, lent, strict=False))
            names = OPERATIONS[self.run.implementation.operation]
            written = [] if self.operation.updated is None else names[self.operation.updated : len(inputs)]
            return self.run.call_gradients(
                inputs,
                *lent[len(inputs) :],
                upstream=_upstream(self.run, example),
                written=written,
                **options,
            )
        if isinstance(example.shape, Mapping):
            parts = self.run.call_parts(*lent, shapes=example.shape, **options)
            return dict(zip(example.shape, parts, strict=True))
        if self.operation.updated is not None:
            result, after = self.run.call_updating(
                *lent, updated=self.operation.updated, shape=example.shape, **options
            )
            return {"result": result, **dict(zip(LEFT, after, strict=False))}
        return {"result": self.run.call(*lent, shape=example.shape, **options)}

    def computing(self, compute: Compute, aspect: str) -> Predict:
        """What a computation gives for the example of an observation. What it is not given has the function's default."""
        run = self.run

        def predict(observation: Observation) -> Parts | None:
            example = observation.subject
            given = [self._bounded(x) for x in example.arguments]
            given += [run.bounded(x) for x in _upstream(run, example)] if aspect == "gradients" else []
            taken = {n: self._number(x, True) for n, x in run.meant(**example.options).items()}
            told = {n: self._number(x, False) for n, x in example.told.items()}
            told |= {"base": base_of(run)} if "base" in told else {}
            try:
                computed = compute(*given, **taken, **told)
            except Exception:  # a variant that cannot be computed here predicts nothing
                return None
            parts = computed if isinstance(computed, Mapping) else {"result": computed}
            return {name: x if example.judged is None else x[example.judged] for name, x in parts.items()}

        return predict

    def _bounded(self, x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: self._bounded(value) for name, value in x.items()}
        return self.run.bounded(x) if isinstance(x, np.ndarray) and x.dtype == self.run.numpy_dtype else x

    def _number(self, x: Any, rounds: bool) -> Any:
        """A number that is no array, rounded to the working precision or exact."""
        if not isinstance(x, float):
            return x
        return Bounded(x, abs(x) * self.run.precision.accumulate.unit if rounds else 0.0, self.run.precision)


def _upstream(run: Run, example: Example) -> tuple[Array, ...]:
    """A gradient for each result of an example."""
    shapes = example.shape.values() if isinstance(example.shape, Mapping) else (example.shape,)
    return tuple(normal(run, 5 + i, *shape) for i, shape in enumerate(shapes))


def _laid_out(x: Array, layout: str) -> Array:
    """A copy, contiguous or in a memory layout."""
    copy = np.array(x, order="C")
    return np.asarray(LAYOUTS[layout](copy)) if layout and x.ndim > 1 and x.dtype.kind == "f" else copy
