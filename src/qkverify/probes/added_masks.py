"""A mask of bools that may also be floats, which are added to the scores, as torch's `attn_mask` may.

The floats are told by what they do: zeros change nothing, and small numbers change the output a little, twice as much where they
are twice as large. Whether they are added, and not subtracted or scaled, is for the laws to find.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qkverify.contract import Implementation, mask_forms
from qkverify.probes.plain import Attempt, call
from qkverify.rounding import FORMATS
from qkverify.runs.run import Run

SMALL = 2.0**-6  # of what is added to scores; its square is far below it


def found(implementation: Implementation, fit: Attempt) -> tuple[Implementation, list[str]]:
    """The function with `bias` through the parameter of its mask, if it takes floats there, and a sentence."""
    if (
        not {"mask"} <= implementation.offers
        or "bias" in implementation.offers
        or "mask" in implementation.adapters
    ):
        return implementation, []
    keyword = implementation.parameters["mask"]
    both = replace(
        implementation,
        parameters={**implementation.parameters, "bias": keyword},
        offers=implementation.offers | {"bias"},
    )
    if not _answers_in_proportion(both, fit):
        return implementation, []
    return both, [f"{keyword} may be floats, which are added to the scores"]


def _answers_in_proportion(implementation: Implementation, fit: Attempt) -> bool:
    sizes = fit.problem.sizes
    letters = mask_forms.axes_of(implementation.mask_form)
    shape = [sizes[letter] if letter in letters else 1 for letter in mask_forms.FULL]
    noise = np.random.default_rng(0).standard_normal(shape)
    outputs = [_output(implementation, fit, None)]
    outputs += [_output(implementation, fit, noise * size) for size in (0.0, SMALL, 2 * SMALL)]
    if any(output is None or not np.isfinite(output).all() for output in outputs):
        return False
    plain, unchanged, little, twice = (np.asarray(output) for output in outputs)
    rounding = (
        np.sqrt(FORMATS[fit.dtype].unit) * np.abs(plain).max()
    )  # far above what sums of another order differ by
    if np.abs(unchanged - plain).max() > rounding:
        return False
    steps = [np.abs(output - unchanged).max() for output in (little, twice)]
    return bool(rounding < steps[0] < np.abs(plain).max() / 4 and 1.5 < steps[1] / steps[0] < 2.5)


def _output(implementation: Implementation, fit: Attempt, bias: np.ndarray | None) -> np.ndarray | None:
    run = Run(implementation, fit.device, fit.dtype)
    given = {} if bias is None else {"bias": bias.astype(run.numpy_dtype)}
    attempt = call(implementation, fit.problem.sizes, fit.dtype, fit.device, 0, {}, **given)
    if attempt.error is not None or attempt.part is None:
        return None
    return np.asarray(run.framework.to_numpy(attempt.part[1]), np.float64)
