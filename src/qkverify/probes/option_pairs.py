"""Options that a function visibly does not take together: torch's `scaled_dot_product_attention` with a mask and causality.

A pair is inferred if the function takes either option alone, and raises for both, in problems of two sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from qkverify.contract import Implementation, mask_forms
from qkverify.probes import sentences
from qkverify.probes.plain import Attempt, call
from qkverify.runs.framework_adapter import NUMPY_DTYPES

Sizes = Mapping[str, int]
WITNESSES = 2  # sizes at which it raises


def refused_together(
    implementation: Implementation, fit: Attempt, sizes: Sequence[Sizes]
) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """The pairs, and a sentence on each. `fit` is a call that was taken, `sizes` are several that are taken."""
    if implementation.compiles or implementation.exclusive:
        return (), []

    @cache
    def errors(*options: str) -> list[BaseException | None]:
        """Of each of the sizes. torch refuses a pair only where it takes one of its several ways."""

        def error(s: Sizes) -> BaseException | None:
            given = {name: VALUES[name](implementation, s, fit.dtype) for name in options}
            return call(implementation, s, fit.dtype, fit.device, 0, {}, **given).error

        return [error(s) for s in sizes]

    offered = [name for name in VALUES if name in implementation.offers and name not in implementation.always]
    pairs, remarks = [], []
    for first, second in combinations(offered, 2):
        names = [implementation.parameters.get(name, name) for name in (first, second)]
        if names[0] == names[1]:
            continue  # one parameter takes either
        raised = [
            both
            for both, *alone in zip(errors(first, second), errors(first), errors(second), strict=True)
            if both is not None and alone == [None, None]
        ]
        if len(raised) >= WITNESSES:
            pairs.append((first, second))
            remark = sentences.limited([], raised[0], f"{names[0]} and {names[1]} are not taken together")
            remarks += [] if remark in remarks else [remark]  # one parameter may be a mask and a bias
    return tuple(pairs), remarks


def _visible(implementation: Implementation, sizes: Sizes, dtype: str) -> np.ndarray:
    """A mask, of the axes that the function takes, which hides the last of several keys."""
    letters = mask_forms.axes_of(implementation.mask_form)
    visible = np.ones([sizes[x] if x in letters else 1 for x in "BHQK"], bool)
    if visible.shape[-1] > 1:
        visible[..., -1] = False
    return visible


def _bias(implementation: Implementation, sizes: Sizes, dtype: str) -> np.ndarray:
    return _visible(implementation, sizes, dtype).astype(NUMPY_DTYPES[dtype])


def _lengths(implementation: Implementation, sizes: Sizes, dtype: str) -> np.ndarray:
    return np.full(sizes["B"], sizes["K"], np.int32)


def _by_head(implementation: Implementation, sizes: Sizes, dtype: str) -> np.ndarray:
    return np.full(sizes["H"], 0.5, NUMPY_DTYPES[dtype])


VALUES: Mapping[str, Callable[[Implementation, Sizes, str], Any]] = {
    "mask": _visible,
    "bias": _bias,
    "causal": lambda *_: True,
    "window": lambda *_: (2, 0),
    "scale": lambda *_: 0.5,
    "softcap": lambda *_: 4.0,
    "alibi_slopes": _by_head,
    "key_lengths": _lengths,
    "sinks": _by_head,
    "return_lse": lambda *_: True,
}
