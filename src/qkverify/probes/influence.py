"""Which keys have weight in which rows of a function's output, and whether its axes are what they are taken for.

Both are read off results that need not be right: a function whose scale is wrong still shows what its mask hides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.contract import Implementation
from qkverify.probes.plain import Attempt, Sizes, attend, problem_of
from qkverify.runs.run import Run

QUERY_SHARE = 1 / 8  # of the usual size of queries: no weight of a visible key is small, whatever the scale
HIDDEN = 1e-12  # of the largest weight of a row: less is a key that is hidden, by a score of -100, say


def weights(implementation: Implementation, sizes: Sizes, dtype: str, device: str, seed: int = 0,
            **options: Any) -> np.ndarray | None:  # fmt: skip
    """The weights (B,H,Q,K), in calls whose values are rows of the unit matrix. None if a call raises, or gives no output."""
    run = Run(implementation, device, dtype)
    options = {**dict.fromkeys(implementation.always, True), **options}
    problem = problem_of(run, sizes, seed, **options)
    query = (problem.query.astype(np.float64) * QUERY_SHARE).astype(run.numpy_dtype)
    columns = []
    for first in range(0, sizes["K"], sizes["E"]):
        ones = np.eye(sizes["K"], sizes["E"], -first, dtype=run.numpy_dtype)
        value = np.ascontiguousarray(np.broadcast_to(ones, problem.value.shape))
        attempt = attend(implementation, problem.replace(query=query, value=value), dtype, device)
        output = output_of(attempt)
        if output is None:
            return None
        columns.append(output[..., : sizes["K"] - first])
    return np.concatenate(columns, axis=-1)


def visible(implementation: Implementation, sizes: Sizes, dtype: str, device: str, seed: int = 0,
            **options: Any) -> np.ndarray | None:  # fmt: skip
    """bool (B,H,Q,K): the keys that have weight; None as of `weights`. A row of NaN sees nothing."""
    measured = weights(implementation, sizes, dtype, device, seed, **options)
    if measured is None:
        return None
    with np.errstate(invalid="ignore"):
        size = np.abs(np.nan_to_num(measured, nan=0.0))
        return np.asarray(size > HIDDEN * size.max(-1, keepdims=True, initial=0.0))


def output_of(attempt: Attempt) -> np.ndarray | None:
    """The output (B,H,Q,E) in float64, None if there is none."""
    if attempt.error is not None or attempt.part is None:
        return None
    run = Run(attempt.implementation, attempt.device, attempt.dtype)
    return np.asarray(run.heads_first(run.framework.to_numpy(attempt.part[1]))).astype(np.float64)


def within_its_head(attempt: Attempt) -> bool:
    """Whether the first key/value head of the first batch entry has no influence on other entries, nor on other heads than those
    that read it. A function that takes the axes in another order mixes them."""
    before = output_of(attempt)
    run = Run(attempt.implementation, attempt.device, attempt.dtype)
    changed = {name: np.array(getattr(attempt.problem, name)) for name in ("key", "value")}
    for array in changed.values():
        array[0, 0] = array[0, 0, ::-1] * run.numpy_dtype(2)
    after = output_of(
        attend(attempt.implementation, attempt.problem.replace(**changed), attempt.dtype, attempt.device)
    )
    if before is None or after is None:
        return False
    moved = ((before != after) & ~(np.isnan(before) & np.isnan(after))).any((-1, -2))
    sizes = attempt.problem.sizes
    read = np.zeros_like(moved)
    read[0, : sizes["H"] // sizes["G"]] = True
    tiled = np.zeros_like(moved)
    tiled[0, :: sizes["G"]] = True
    return bool(moved.any() and (not (moved & ~read).any() or not (moved & ~tiled).any()))
