"""The mistakes of merged attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Example, Gradients, Mistakes, OperationKind
from qkverify.reference.attention import stored
from qkverify.reference.softmax import softmax
from qkverify.runs.exact_merge import computed, computed_gradients
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import example


def _examples(run: Run) -> list[Example]:
    sizes = [(2, 3, 4, 5), (1, 2, 3, 4), (3, 1, 2, 6), (2, 2, 5, 3), (1, 4, 1, 2), (2, 1, 6, 4)]
    examples = []
    for i, (batch, heads, length, size) in enumerate(sizes):
        drawn = {
            "B": batch,
            "H": heads,
            "L": length,
            "E": size,
            "empty": i % 3 == 2,
            "fill": "normal",
            "seed": i,
        }
        given = example(run, drawn).arguments
        shapes = {"output": given["o_a"].shape, "lse": given["lse_a"].shape}
        examples.append(Example(tuple(given.values()), {}, shapes))
    return examples


def _output(change: Callable[..., Any]) -> Callable[..., Any]:
    """A right log-sum-exp with another output: of both outputs, the shares (..., 2), and the log-sum-exps."""

    def compute(o_a: Any, lse_a: Any, o_b: Any, lse_b: Any, **choices: Any) -> dict[str, Any]:
        shares = softmax(np.stack([lse_a, lse_b], axis=-1))
        return {
            **computed(o_a, lse_a, o_b, lse_b, **choices),
            "output": stored(change(o_a, o_b, shares[..., :1], shares[..., 1:])),
        }

    return compute


def _lse(change: Callable[..., Any]) -> Callable[..., Any]:
    """A right output with another log-sum-exp, of those of both sides and the right one."""

    def compute(o_a: Any, lse_a: Any, o_b: Any, lse_b: Any, **choices: Any) -> dict[str, Any]:
        right = computed(o_a, lse_a, o_b, lse_b, **choices)
        return {**right, "lse": change(lse_a, lse_b, right["lse"])}

    return compute


def _larger(a: Any, b: Any, _: Any) -> Any:
    return np.maximum(a, b)


MISTAKES: Mistakes = (
    ("the plain sum of both outputs", _output(lambda a, b, s, t: a + b)),
    ("the plain mean of both outputs", _output(lambda a, b, s, t: (a + b) * 0.5)),
    ("the outputs with their weights exchanged", _output(lambda a, b, s, t: t * a + s * b)),
    ("outputs weighted by exp(lse - the larger), which are not divided by the sum of the weights",
     _output(lambda a, b, s, t: (s * a + t * b) / np.maximum(s, t))),
    ("the first output alone", _output(lambda a, b, s, t: a)),
    ("the second output alone", _output(lambda a, b, s, t: b)),
    ("a log-sum-exp that is the larger of the two", _lse(_larger)),
    ("a log-sum-exp that is the sum of the two", _lse(lambda a, b, _: a + b)),
    ("the log-sum-exp of the first side", _lse(lambda a, b, _: a)),
    ("the log-sum-exp of the second side", _lse(lambda a, b, _: b)),
    ("a log-sum-exp with its sign flipped", _lse(lambda a, b, right: -right)),
    ("a log-sum-exp without the shift by the larger of the two", _lse(lambda a, b, right: right - np.maximum(a, b))),
)  # fmt: skip


def _without(upstream: bool) -> Callable[..., Any]:
    """Gradients by the log-sum-exps that lack what comes of the output, or of the log-sum-exp."""

    def compute(*given: Any, **choices: Any) -> Any:
        *arrays, above, lse_above = given
        none = [above * 0.0, lse_above] if upstream else [above, lse_above * 0.0]
        whole, partly = computed_gradients(*given, **choices), computed_gradients(*arrays, *none, **choices)
        return {name: partly[name] if name.startswith("lse") else whole[name] for name in whole}

    return compute


GRADIENTS = Gradients(("o_a", "lse_a", "o_b", "lse_b"), computed_gradients, (
    ("those of shares that are constants", _without(upstream=True)),
    ("those of the output alone, without what comes of the log-sum-exp", _without(upstream=False)),
))  # fmt: skip

KIND = OperationKind(_examples, computed, MISTAKES, (), GRADIENTS)
