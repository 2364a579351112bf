"""Problems for score tests: many heads whose numbers are drawn independently, in one call or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qkverify.errors import UnsupportedCase
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

Array = np.ndarray
HEADS = 256
HEADS_OF_SLOW = 96  # where calls are slow; with fewer than REACH ** 2 = 71 no error could break the test
SIZES = (16, 64, 128)  # of queries and keys (D) and values (E)
LONGER = ((16, 64), (64, 64), (128, 128))  # queries and keys, for a function that takes no fewer
NEAR, SPREAD = 2.0, 0.25  # scores below the largest; standard deviation of what queries add to a key's
OWN = 1 / 16  # of a value, where all of a head are nearly alike
LEVELS = {"float32": (4.0, 72.0), "float16": (1.0, 3.5), "bfloat16": (1.0, 3.5)}  # width, distance


def heads(run: Run, seed: int, *, queries: int = 16, keys: int = 16, upstream: bool = False) -> list[Problem]:
    """Normal numbers for `HEADS` independent heads (`HEADS_OF_SLOW` where calls are slow), in one problem or several. Raises
    UnsupportedCase if none has a size that the implementation takes."""
    s, calls = _sizes(run, queries, keys)
    rng = np.random.default_rng(seed)
    shapes = {"query": "QD", "key": "KD", "value": "KE"} | ({"upstream": "QE"} if upstream else {})
    return [
        _problem(
            run, {name: rng.standard_normal([s[x] for x in "BH" + axes]) for name, axes in shapes.items()}
        )
        for _ in range(calls)
    ]


def alike_values(run: Run, seed: int, *, upstream: bool = True) -> list[Problem]:
    """Likewise, with values of a head that are nearly alike: delta is then large, and what is left of the gradient of a weight
    once delta is taken from it is small, and with it what an error of the weight does."""
    problems = heads(run, seed, upstream=upstream)
    common = np.random.default_rng([seed, 1])

    def alike(value: Array) -> Array:
        shared = common.standard_normal((*value.shape[:2], 1, value.shape[3]))
        return np.asarray((shared + OWN * value.astype(np.float64)).astype(value.dtype))

    return [problem.replace(value=alike(problem.value)) for problem in problems]


def two_levels(run: Run, seed: int, *, upstream: bool = False) -> list[Problem]:
    """Likewise, with half of the scores near the largest and half of them far below, and values that make up for the weights.

    The first key has the largest score, 0, and the value 0: the maximum, which every implementation subtracts, is of no
    key that counts. See `balanced_tests`.
    """
    s, calls = _sizes(run, 16, 16)
    rng = np.random.default_rng(seed)
    width, distance = LEVELS[run.dtype]

    def arrays() -> dict[str, Array]:
        def normal(axes: str) -> Array:
            return np.asarray(rng.standard_normal([s[x] for x in "BH" + axes]))

        level = -NEAR - rng.uniform(0.0, width, (s["B"], s["H"], s["K"])) - distance * (np.arange(s["K"]) % 2)
        query, key = normal("QD"), SPREAD * normal("KD")
        value = normal("KE") * np.exp(-level)[..., None]
        query[..., 0], key[..., 0] = s["D"] ** 0.5, level
        key[..., 0, :] = value[..., 0, :] = 0.0
        return {"query": query, "key": key, "value": value} | ({"upstream": normal("QE")} if upstream else {})

    return [_problem(run, arrays()) for _ in range(calls)]


def _problem(run: Run, arrays: Mapping[str, Array]) -> Problem:
    stored: dict[str, Any] = {name: x.astype(run.numpy_dtype) for name, x in arrays.items()}
    return Problem(**stored)


def _sizes(run: Run, queries: int, keys: int) -> tuple[dict[str, int], int]:
    """Sizes that the implementation takes, by letter, and how many calls have so many heads."""
    count = HEADS_OF_SLOW if run.implementation.slow(run.device) else HEADS
    lengths = [(queries, keys), *((q, k) for q, k in LONGER if q >= queries and k >= keys)]
    for q, k in lengths:
        for size in SIZES:
            for split in _splits(count):
                sizes = {**split, "Q": q, "K": k, "D": size, "E": size}
                if run.implementation.accepts(sizes) is None:
                    return sizes, count // (split["B"] * split["H"])
    raise UnsupportedCase(
        f"{run.implementation.name} takes no {count} heads of {queries} queries and {keys} keys"
    )


def _splits(count: int) -> tuple[dict[str, int], ...]:
    """So many heads as batch entries and heads of one call, or one by one for a function that takes a single head."""
    per_entry = 16
    return (
        {"B": count // per_entry, "H": per_entry, "G": per_entry},
        {"B": count, "H": 1, "G": 1},
        {"B": 1, "H": 1, "G": 1},
    )
