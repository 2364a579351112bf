"""Where the norms of a layer stand, and what is added to the variance, if it is not told.

A layer is called with tokens whose variance is as small as what may be added to it, and compared with the reference for every
pair of the two, the usual one first. None of them is found of a layer that is wrong in another way.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from qkverify.contract.operations import DESCRIBED, word
from qkverify.problem.byte_strategies import limited
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import BARE, FILL, PreparedCall, example
from qkverify.strategies.operations import OPERATION_SPECS

SMALL = 2.0**-8  # of tokens: a power of two, which rounds nothing; its square is about 1e-5
EXAMPLES = 4


def norms(run: Run) -> dict[str, str]:
    """`norm_first` and `eps` of a call that names neither, or nothing if no choice of them explains the results.

    Raises what the function raises.
    """
    defaults = DESCRIBED[run.implementation.operation].defaults
    choices = [dict(zip(defaults, values, strict=True)) for values in product(*defaults.values())]
    calls = [_call(run, seed) for seed in range(EXAMPLES)]
    results = [PreparedCall(run, call).results()[0] for call in calls]
    for choice in choices:
        exact = [call.form.exact(run, call.arguments, {**call.options, **choice})[0] for call in calls]
        received = [run.within(got, bound) for got, bound in zip(results, exact, strict=True)]
        if all(
            (np.abs(got.value - x.value) <= got.errors).all() for got, x in zip(received, exact, strict=True)
        ):
            return {name: word(value) for name, value in choice.items()}
    return {}


def _call(run: Run, seed: int) -> Any:
    pools = {**FILL, **OPERATION_SPECS[run.implementation.operation].sizes, **BARE}
    limits = run.implementation.size_limits
    drawn = {name: limited(name, pool, limits)[-1] for name, pool in pools.items()}
    call = example(run, {**drawn, "fill": "normal", "seed": seed, "bare": True})
    tokens: dict[str, np.ndarray] = {}
    for name in {"x", "memory"} & call.arrays.keys():
        tokens[name] = call.arrays[name] * run.numpy_dtype(SMALL)
    return call.but(tokens)
