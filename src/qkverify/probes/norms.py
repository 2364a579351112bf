"""What a layer, or a norm alone, means by what it is not told: where the norms stand, what is added to the variance, and of a
norm how its variance is taken and whether its gain is 1 + the weight.

It is called with tokens whose variance is as small as what may be added to it, and a norm also with tokens of a large mean. The
results are compared with the reference for every choice, the usual one first. None is found of code that is wrong in another way.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from qkverify.contract.operations import DESCRIBED, word
from qkverify.contract.signatures import parameters_of
from qkverify.problem.byte_strategies import limited
from qkverify.rounding import Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import BARE, FILL, PreparedCall, example
from qkverify.strategies.operations import OPERATION_SPECS

SMALL = 2.0**-8  # of tokens: a power of two, which rounds nothing; its square is about 1e-5
EXAMPLES = 4
SMALLEST = 2.0**-20  # of tokens that a norm alone is given: what is added may be 1e-12


def norms(run: Run) -> dict[str, str]:
    """The options of a call that names none, such as `norm_first` and `eps`. If no choice of them explains the results, the
    function is wrong in another way, and only what its signature says is known.

    Raises what the function raises.
    """
    defaults = DESCRIBED[run.implementation.operation].defaults
    signed = _signed(run)
    values_of = {name: dict.fromkeys((*signed.get(name, ()), *values)) for name, values in defaults.items()}
    choices = [dict(zip(values_of, values, strict=True)) for values in product(*values_of.values())]
    alone = "offset" in defaults
    changes = (SMALL, SMALLEST, None) if alone else (SMALL,)
    calls = [_call(run, seed, change) for change in changes for seed in range(EXAMPLES)]
    results = [got for call in calls for got in PreparedCall(run, call).results()]
    for choice in choices:
        every = (call.form.exact(run, call.arguments, {**call.options, **choice}) for call in calls)
        exact = [part for parts in every for part in parts]
        received = [run.within(got, bound) for got, bound in zip(results, exact, strict=True)]
        if all(_explained(got, x) for got, x in zip(received, exact, strict=True)):
            return {name: word(value) for name, value in choice.items()}
    return {name: word(value) for name, (value,) in signed.items()}


def _explained(got: Bounded, exact: Bounded) -> bool:
    """Whether a result lies within its bound, infinities where they should be."""
    with np.errstate(invalid="ignore"):
        near = np.abs(got.value - exact.value) <= got.errors
    return bool((near | (got.value == exact.value)).all())


def _signed(run: Run) -> dict[str, tuple[float]]:
    """The number that the signature has as the default of eps, if it has one."""
    keyword = run.implementation.parameters.get("eps", "")
    try:
        parameter = parameters_of(run.implementation.function).get(keyword)
    except (ValueError, TypeError):  # it shows no signature
        return {}
    return {"eps": (parameter.default,)} if parameter and isinstance(parameter.default, float) else {}


def _call(run: Run, seed: int, size: float | None) -> Any:
    """Tokens of a size, or, without one, with a mean whose square has few digits left for a variance of one."""
    pools = {**FILL, **OPERATION_SPECS[run.implementation.operation].sizes, **BARE}
    limits = run.implementation.size_limits
    drawn = {name: limited(name, pool, limits)[-1] for name, pool in pools.items()}
    call = example(run, {**drawn, "fill": "normal", "seed": seed, "bare": True})
    if call.form.reveal is not None:
        return call.but(call.form.reveal(call.arrays, seed))
    tokens: dict[str, np.ndarray] = {}
    for name in {"x", "memory"} & call.arrays.keys():
        level = 2.0 ** round(-math.log2(run.precision.accumulate.unit) / 3)
        moved = call.arrays[name] * run.numpy_dtype(size or 1.0) + run.numpy_dtype(0.0 if size else level)
        tokens[name] = moved.astype(run.numpy_dtype)
    return call.but(tokens)
