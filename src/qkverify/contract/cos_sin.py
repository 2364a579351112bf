"""Rotary functions that are given tables of cosines and sines instead of positions: `rotary(x, cos, sin)` and
`apply_rotary_pos_emb(q, k, cos, sin)`, as functions of positions.

The tables are computed in float64 and rounded to the dtype of x. Their shape is found out by `probes.tables`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from qkverify.contract import frameworks
from qkverify.contract.fixed_parameters import BASE

AXES = ("L", "1L", "11L", "BL", "B1L", "BL1")  # of a table, before its last one


@dataclass(frozen=True)
class Tables:
    """The shape of the tables: `axes`; `whole`, as wide as x, or half as wide; `indexed`, for positions from 0 on that the
    function picks rows of by `position_ids`; and whether x is (B,L,H,D). `layout`, "half" or "interleaved", says which columns of
    a whole table are equal."""

    axes: str = "L"
    whole: bool = True
    heads_last: bool = False
    indexed: bool = False
    layout: str = "half"

    def __str__(self) -> str:
        shape = ",".join(
            [
                *("positions" if self.indexed and x == "L" else x for x in self.axes),
                "D" if self.whole else "D/2",
            ]
        )
        return f"cos and sin are ({shape}){', x is (B,L,H,D)' if self.heads_last else ''}"

    def angles(self, positions: np.ndarray, size: int) -> np.ndarray:
        """The angles of a table, of positions (L,) or (B,L): (..., L, size or size / 2), float64."""
        turns = positions[..., None].astype(np.float64) * BASE ** (-np.arange(0, size, 2) / size)
        if not self.whole:
            return np.asarray(turns)
        return np.concatenate([turns] * 2, -1) if self.layout == "half" else np.repeat(turns, 2, -1)

    def placed(self, table: np.ndarray) -> np.ndarray:
        """A table (L, W) or (B, L, W) with all its axes."""
        batch = table.shape[0] if table.ndim == 3 else 1
        sizes = {"L": table.shape[-2], "B": batch, "1": 1}
        return np.ascontiguousarray(table.reshape(*(sizes[letter] for letter in self.axes), table.shape[-1]))


def reads(names: Sequence[str]) -> int:
    """How many arrays come before cos and sin in a signature: 1, 2, or 0 where it is none of these."""
    low = [name.lower() for name in names]
    for count in (1, 2):
        if len(low) >= count + 2 and "cos" in low[count] and "sin" in low[count + 1]:
            return count if count == 1 or (low[0][0], low[1][0]) == ("q", "k") else 0
    return 0


class OfPositions:
    """A function of arrays and tables as one of arrays and positions; `adapted` is the former."""

    def __init__(self, function: Callable[..., Any], arrays: str, tables: Tables) -> None:
        self.adapted, self.arrays, self.tables = function, arrays, tables
        functools.update_wrapper(self, function)

    def with_tables(self, tables: Tables) -> OfPositions:
        return OfPositions(self.adapted, self.arrays, tables)

    def __call__(self, *arguments: Any, **constants: Any) -> Any:
        *arrays, positions = arguments
        at = np.asarray(frameworks.get(self.arrays).to_numpy(positions))
        if at.ndim == 2 and "B" not in self.tables.axes and not self.tables.indexed:
            return self._by_entry(arrays, at, constants)
        rows = np.arange(int(at.max(initial=0)) + 1) if self.tables.indexed else at
        angles = self.tables.angles(rows, int(arrays[0].shape[-1]))
        indices = {"position_ids": positions} if self.tables.indexed else {}
        return self.turned(arrays, angles, {**constants, **indices})

    def turned(self, arrays: Sequence[Any], angles: np.ndarray, options: dict[str, Any]) -> Any:
        """What the function gives for tables of these angles, (B,H,L,D)."""
        framework = frameworks.get(self.arrays)
        dtype = np.dtype(
            getattr(ml_dtypes, framework.dtype_of(arrays[0]), None) or framework.dtype_of(arrays[0])
        )
        device = (
            getattr(getattr(arrays[0], "device", None), "type", "cpu") if self.arrays == "torch" else "cpu"
        )
        tables = [
            framework.from_numpy(self.tables.placed(table(angles).astype(dtype)), device)
            for table in (np.cos, np.sin)
        ]
        result = self.adapted(*(self._laid(x) for x in arrays), *tables, **options)
        if isinstance(result, tuple | list):
            return tuple(self._laid(x) for x in result)
        return self._laid(result)

    def _by_entry(self, arrays: Sequence[Any], at: np.ndarray, constants: dict[str, Any]) -> Any:
        """Each batch entry by a call of its own, with its own positions."""
        framework = frameworks.get(self.arrays)
        calls = [
            self.turned(
                [x[entry : entry + 1] for x in arrays],
                self.tables.angles(rows, int(arrays[0].shape[-1])),
                constants,
            )
            for entry, rows in enumerate(at)
        ]
        return tuple(framework.concatenated(parts) for parts in zip(*calls, strict=True))

    def _laid(self, array: Any) -> Any:
        return array.swapaxes(1, 2) if self.tables.heads_last else array
