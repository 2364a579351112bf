"""The shape of the tables of cosines and sines that a rotary function takes, found out by calls.

In each, one token of one batch entry is turned and all others have angle 0: they must stay what they are. So a function that
turns by a wrong sign, or the wrong pairs, still shows the shape of its tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from qkverify.contract import Implementation, frameworks, parameters_of
from qkverify.contract.cos_sin import AXES, OfPositions, Tables
from qkverify.errors import NothingVerified
from qkverify.probes.sentences import first_line

SIZES = (2, 3, 5, 8)  # B, H, L, D


def found(implementation: Implementation) -> Implementation:
    """The function with the tables that it takes. Raises NothingVerified if it takes none of those that are tried."""
    function = implementation.function
    if not isinstance(function, OfPositions):
        return implementation
    errors: list[BaseException] = []
    constants = implementation.keywords({}, size=SIZES[-1])
    for tables in _candidates(implementation, function):
        made = function.with_tables(tables)
        if _turns_one_token(made, constants, implementation.operation == "rotary_pair", errors):
            layout = _layout(made, constants, implementation.operation == "rotary_pair")
            settled = replace(tables, layout=layout or tables.layout)
            said = f"{settled}; they are made from positions, by base 10000, in the dtype of x"
            return replace(
                implementation,
                function=function.with_tables(settled),
                remarks=(*implementation.remarks, said),
            )
    why = f": {first_line(errors[0])}" if errors else ""
    raise NothingVerified(
        f"{implementation.name} takes cos and sin, and turns the right tokens with none of the shapes that were tried{why}\n"
        "  verify a function that makes them: def rotary(x, positions): ..."
    )


def _candidates(implementation: Implementation, function: OfPositions) -> Iterator[Tables]:
    pair = implementation.operation == "rotary_pair"
    required = "position_ids" in parameters_of(function.adapted) and (
        parameters_of(function.adapted)["position_ids"].default
        is parameters_of(function.adapted)["position_ids"].empty
    )
    for indexed in (True,) if required else (False, True) if pair else (False,):
        batched = [axes for axes in AXES if "B" in axes]
        shared = [axes for axes in AXES if "B" not in axes]
        axes_tried = shared if indexed else [*batched, *shared] if pair else shared
        for heads_last, axes, whole in product((False, True), axes_tried, (True, False)):
            yield Tables(axes, whole, heads_last, indexed)


def _called(
    function: OfPositions, x: np.ndarray, angles: np.ndarray, constants: dict[str, Any], pair: bool
) -> list[np.ndarray]:
    framework = frameworks.get(function.arrays)
    arrays = [framework.from_numpy(x, "cpu") for _ in range(1 + pair)]
    options = dict(constants)
    if function.tables.indexed:
        ids = np.broadcast_to(np.arange(angles.shape[-2]), (x.shape[0], angles.shape[-2]))
        options |= {"position_ids": framework.from_numpy(np.ascontiguousarray(ids), "cpu")}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = function.turned(arrays, angles, options)
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(framework.to_numpy(part)) for part in parts]


def _turns_one_token(
    function: OfPositions, constants: dict[str, Any], pair: bool, errors: list[BaseException]
) -> bool:
    batch, heads, length, size = SIZES
    x = np.random.default_rng(0).standard_normal(SIZES).astype(np.float32)
    width = size if function.tables.whole else size // 2
    batched = "B" in function.tables.axes
    angles = np.zeros((batch, length, width) if batched else (length, width))
    angles[(1, 3) if batched else 3] = 1.0
    try:
        parts = _called(function, x, angles, constants, pair)
    except Exception as error:  # the next shape
        errors.append(error)
        return False
    if len(parts) != 1 + pair or any(part.shape != x.shape for part in parts):
        return False
    expected = np.zeros((batch, heads, length), bool)
    expected[(slice(1, 2) if batched else slice(None)), :, 3] = True
    return all(bool(((part != x).any(-1) == expected).all()) for part in parts)


def _layout(function: OfPositions, constants: dict[str, Any], pair: bool) -> str | None:
    """Which numbers are a pair: (1, 0, 0, ...) turned by one angle shows it."""
    size = SIZES[-1]
    x = np.zeros(SIZES, np.float32)
    x[..., 0] = 1
    width = size if function.tables.whole else size // 2
    shape = (SIZES[0], SIZES[2], width) if "B" in function.tables.axes else (SIZES[2], width)
    places = tuple(
        int(at)
        for at in np.flatnonzero(_called(function, x, np.full(shape, 1.0), constants, pair)[0][0, 0, 0])
    )
    known: dict[tuple[int, ...], str] = {(0, 1): "interleaved", (0, size // 2): "half"}
    return known.get(places)
