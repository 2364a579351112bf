"""The best possible implementation of every operation: one of this suite in float64, its results rounded once.

Every law must hold of it, within bounds that excuse nothing but that one rounding. A law that does not accuses right code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from qkverify.contract import Implementation, describe
from qkverify.contract.registry import load_folder
from qkverify.rounding import FORMATS, Format, Precision
from qkverify.runs.framework_adapter import NUMPY_DTYPES

# Nearly float64: the reference rounds as float64 does, and its share is added to the bound.
WIDE = Format("nearly float64", 2.0**-46, 2.0**-1022, FORMATS["float64"].huge)
WRITTEN = {"cached_attention": ("key_cache", "value_cache")}


def sources() -> dict[str, Implementation]:
    """An implementation of every operation that has one here, by a name: with gradients if there is one, in torch if there
    is one; two of attention, for only one of them has dropout."""
    by_operation: dict[str, Implementation] = {}
    ranked = sorted(
        load_folder(),
        key=lambda implementation: (
            "gradients" not in implementation.offers,
            implementation.arrays != "torch",
        ),
    )
    for implementation in ranked:
        by_operation.setdefault(implementation.operation, implementation)
    every = {implementation.name: implementation for implementation in load_folder()}
    return {
        **by_operation,
        "attention": every["torch_eager"],
        "attention with dropout": every["torch_sdpa-math"],
    }


def rounded_once(implementation: Implementation, dtype: str) -> Implementation:
    """An implementation with every result of `implementation` for float64 arguments, rounded to `dtype`."""
    wide, narrow = CASTS[implementation.arrays]

    @functools.wraps(implementation.function)
    def function(*arguments: Any, **keywords: Any) -> Any:
        if "dtype" in implementation.parameters:
            keywords["dtype"] = "float64"
        taken = [wide(x) for x in arguments]
        returned = implementation.function(*taken, **wide(keywords))
        if implementation.operation in WRITTEN:  # the caches, where new tokens stand now
            for before, after in zip(arguments[3:5], taken[3:5], strict=True):
                before.copy_(after.to(before.dtype))
        # The log-sum-exp stays as it is: what its dtype is, is nobody's business.
        if implementation.operation in ("attention", "merged_attention") and isinstance(returned, tuple):
            return narrow(returned[0], dtype), returned[1]
        return narrow(returned, dtype)

    return describe(
        function, name=f"exact_{implementation.name}", operation=implementation.operation,
        arrays=implementation.arrays, dtypes=dtype, differentiable="gradients" in implementation.offers,
        precision=Precision(WIDE, WIDE, WIDE, FORMATS[dtype]), requires=implementation.requires,
        exclusive=implementation.exclusive, convention=implementation.convention,
        layout=implementation.layout, **implementation.semantics,
    )  # fmt: skip


def _each(cast: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The cast of every array in a mapping or a tuple; all else stays what it is."""

    def apply(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: apply(value) for name, value in x.items()}
        return tuple(apply(part) for part in x) if isinstance(x, tuple) else cast(x)

    return apply


def _wide_tensor(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _wide_array(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind not in "iub" else x


def _narrow_tensor(x: Any, dtype: str) -> Any:
    return _each(lambda part: part.to(getattr(torch, dtype)))(x)


def _narrow_array(x: Any, dtype: str) -> Any:
    return _each(lambda part: part.astype(NUMPY_DTYPES[dtype]))(x)


CASTS = {"torch": (_each(_wide_tensor), _narrow_tensor), "numpy": (_each(_wide_array), _narrow_array)}
