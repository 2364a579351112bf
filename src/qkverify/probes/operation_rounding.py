"""How another operation than attention rounds, of which nothing is declared.

In half precision it counts as a fused kernel, with float32 inside, unless the bounds of that do not hold on plain calls and
those of code that rounds after every operation do. The latter are believed only if they say something: of most results they
must leave the sign no choice. In float64 the angles of positions may be computed in float32.

A function that is wrong breaks both, and is judged by the tighter one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qkverify.problem.byte_strategies import limited
from qkverify.rounding import Bounded, Precision
from qkverify.runs import exact_gradients
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import BARE, OperationCall, PreparedCall, example
from qkverify.strategies.operations import OPERATION_SPECS

EXAMPLES = 100
FEW = 8  # where every size is compiled anew, or a call takes long
Results = list[np.ndarray]


def precision(run: Run, fused: str) -> str | None:
    """The model of the results in half precision: `fused` or "eager"; None if neither holds. Raises what the function raises."""
    calls = calls_of(run)
    results = [PreparedCall(run, call).results() for call in calls]
    return _model(run, fused, results, lambda judged: [call.exact(judged) for call in calls])


def gradient_precision(run: Run, fused: str) -> str | None:
    """The same of the gradients, of an operation whose gradient is one formula; None of the others."""
    exact = exact_gradients.OF.get(run.implementation.operation)
    if exact is None:
        return None
    calls = calls_of(run)
    upstreams = [_upstream(run, call, seed) for seed, call in enumerate(calls)]
    received = [_gradients(run, call, upstream) for call, upstream in zip(calls, upstreams, strict=True)]
    names = list(received[0])

    def bounds(judged: Run) -> list[Sequence[Bounded]]:
        every = (exact(judged, above, *call.arguments.values(), **judged.meant(**call.options))
                 for call, above in zip(calls, upstreams, strict=True))  # fmt: skip
        return [[gradients[name] for name in names] for gradients in every]

    return _model(run, fused, [list(x.values()) for x in received], bounds)


def softmax_gradient(run: Run) -> str | None:
    """ "steps" if differentiating exp, sum, division and maximum one by one explains what the formula, rounded operation by
    operation, does not: the largest of many equal scores collects what is rounded. Raises what the function raises."""
    if run.implementation.operation != "softmax":
        return None
    rng, eager = np.random.default_rng(0), Precision.eager(run.dtype)
    scores = np.where(np.arange(65) == 0, rng.uniform(0.0, 1.0, (8, 1)), 0.0).astype(run.numpy_dtype)
    upstream = np.repeat(rng.uniform(0.5, 2.0, (8, 1)), 65, axis=1).astype(run.numpy_dtype)
    gradient = run.call_gradients({"scores": scores}, upstream=upstream)["scores"]

    def holds(way: str) -> bool:
        semantics = {**run.semantics, "softmax_gradient": way}
        judged = Run(run.implementation, run.device, run.dtype, semantics, eager, eager)
        return hold(
            judged, [[gradient]], [[exact_gradients.OF["softmax"](judged, upstream, scores)["scores"]]]
        )

    return "steps" if not holds("formula") and holds("steps") else None


def angles(run: Run) -> str | None:
    """ "float32" if angles that are computed so explain what float64 angles do not. Raises what the function raises."""
    calls = calls_of(run)
    results = [PreparedCall(run, call).results() for call in calls]
    narrow = Run(
        run.implementation, run.device, run.dtype, {**run.semantics, "angles": "float32"}, run.precision
    )
    if hold(run, results, [call.exact(run) for call in calls]):
        return None
    return "float32" if hold(narrow, results, [call.exact(narrow) for call in calls]) else None


def _model(run: Run, fused: str, results: Sequence[Results],
           bounds: Callable[[Run], Sequence[Sequence[Bounded]]]) -> str | None:  # fmt: skip
    for name in (fused, "eager"):
        model = Precision.named(name, run.dtype)
        judged = Run(run.implementation, run.device, run.dtype, run.semantics, model, model)
        exact = bounds(judged)
        if hold(judged, results, exact) and (name == fused or _says_something(exact)):
            return name
    return None


def hold(run: Run, results: Sequence[Results], exact: Sequence[Sequence[Bounded]]) -> bool:
    """Whether all results are within the bounds."""
    with np.errstate(invalid="ignore"):
        return all(
            bool((np.abs(got.astype(np.float64) - part.value) <= run.within(got, part).errors).all())
            for call, bounds in zip(results, exact, strict=True)
            for got, part in zip(call, bounds, strict=True)
        )


def _says_something(exact: Sequence[Sequence[Bounded]]) -> bool:
    """Whether the bounds tell zero from most of the numbers that are not zero."""
    known = [np.abs(part.value) > part.errors for parts in exact for part in parts]
    counted = [part.value != 0 for parts in exact for part in parts]
    return 2 * sum(int(x.sum()) for x in known) > sum(int(x.sum()) for x in counted)


def calls_of(run: Run) -> list[OperationCall]:
    """Calls of small sizes and of larger ones, of whole numbers and of normal ones: which path is taken may depend on each."""
    form, calls = OPERATION_SPECS[run.implementation.operation], []
    few = run.implementation.compiles or run.implementation.slow(run.device)
    for seed in range(FEW if few else EXAMPLES):
        rng = np.random.default_rng(seed)
        limits = run.implementation.size_limits
        pools = {name: limited(name, pool, limits) for name, pool in {**form.sizes, **BARE}.items()}
        drawn = {name: pool[max(rng.integers(len(pool), size=1 + seed % 2))] for name, pool in pools.items()}
        fill = "whole" if seed % 4 > 1 else "normal"
        calls.append(example(run, {**drawn, "fill": fill, "seed": seed}))
    return calls


def _upstream(run: Run, call: OperationCall, seed: int) -> np.ndarray:
    shape = call.exact(run)[0].value.shape
    return np.asarray(np.random.default_rng([seed, 1]).standard_normal(shape).astype(run.numpy_dtype))


def _gradients(run: Run, call: OperationCall, upstream: np.ndarray) -> dict[str, np.ndarray]:
    floating = {name: x for name, x in call.arguments.items() if x.dtype == run.numpy_dtype}
    first = list(call.arguments)[: max(list(call.arguments).index(name) for name in floating) + 1]
    inputs = {name: call.arguments[name] for name in first}
    rest = [x for name, x in call.arguments.items() if name not in inputs]
    return run.call_gradients(inputs, *rest, upstream=upstream, **call.options)
