"""The diagnosis of other operations than attention: their mistakes compared on examples of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qkverify.diagnosis.fitting import Observation, Parts, Predict, agrees, select, sentence
from qkverify.diagnosis.observing import fresh
from qkverify.diagnosis.operations.kind import Example, Operation
from qkverify.diagnosis.operations.multi_head import MULTI_HEAD
from qkverify.diagnosis.operations.positional_encoding import POSITIONAL_ENCODING
from qkverify.diagnosis.operations.rotary import ROTARY
from qkverify.diagnosis.operations.softmax import SOFTMAX
from qkverify.rounding import Bounded
from qkverify.runs import Run

OTHERS: Mapping[str, Operation] = {
    "softmax": SOFTMAX,
    "positional_encoding": POSITIONAL_ENCODING,
    "rotary": ROTARY,
    "multi_head_attention": MULTI_HEAD,
}


def other_operation(run: Run, until: float) -> str:
    """The diagnosis of another operation: its mistakes compared on examples of its own."""
    operation = OTHERS.get(run.implementation.operation)
    if operation is None:
        return ""
    run = fresh(run)
    with np.errstate(all="ignore"):
        found = [_called(run, operation, example) for example in operation.examples(run)]
        seen = sorted([one for one in found if one is not None], key=lambda one: one.right)
        if not seen or seen[0].right:
            return ""
        mistakes = [(text, _calling(run, compute)) for text, compute in operation.mistakes]
        text, where = select(run, seen, mistakes, operation.conditions, until)
    return sentence(where, f"the result equals {text}") if text else ""


def _called(run: Run, operation: Operation, example: Example) -> Observation | None:
    lent = [np.copy(x) if isinstance(x, np.ndarray) else x for x in example.arguments]
    taken = {n: x for n, x in example.options.items() if run.offers_parameter(n)}
    expected = _calling(run, operation.exact)(Observation(example, {}, {}, True))
    try:
        got = run.call(*lent, shape=example.shape, **taken)
    except Exception:  # what the implementation refuses says nothing
        return None
    if expected is None:
        return None
    bound = Bounded(expected["result"].value, run.within(got, expected["result"]).errors)
    return Observation(example, {"result": got}, {"result": bound}, bool(agrees(got, bound).all()))


def _calling(run: Run, compute: Callable[..., Any]) -> Predict:
    def predict(seen: Observation) -> Parts | None:
        given = [run.bounded(x) if isinstance(x, np.ndarray) and x.dtype == run.numpy_dtype else x
                 for x in seen.subject.arguments]  # fmt: skip
        try:
            return {"result": compute(Bounded(10000.0, 0.0, run.precision), *given, **seen.subject.options)}
        except Exception:  # a variant that cannot be computed here predicts nothing
            return None

    return predict
