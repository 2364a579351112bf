"""The pace of a machine: what the same work took it in each run, by which times of different days are made comparable.

A machine is not the same every day: its neighbours, its clock and its memory make all times longer or shorter. The pace of a run
is what all *other* implementations, and the ceilings, say of it together: each has one vote, which is how far its cells lie from
their own middles, and the median counts (Tukey's median polish of logarithms, of the cells and then of the votes), so that those
few that really changed have no say. An implementation has none in its own pace. A time divided by the pace is normalised, and
only normalised times are judged.

What this cannot see: a change that meets most implementations and the ceilings alike (a new framework, say) looks like the
machine's. The pace of each run and what changed in its software are shown for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qkverify.history.change_points import Floats
from qkverify.history.earlier_runs import PastRun, TimedCase

POLISHING = 20  # rounds of the polish; it settles in a few
CEILINGS = ""  # no implementation has this name


def drift_estimates(
    cells: Sequence[TimedCase], times: Floats, runs: Sequence[PastRun]
) -> dict[str, dict[str, Floats]]:
    """What each implementation, and the ceilings as CEILINGS, say of the runs, for each device: (runs,) each."""
    votes: dict[str, dict[str, Floats]] = {}
    for device in dict.fromkeys(cell.device for cell in cells):
        mine = votes[device] = {}
        for name in dict.fromkeys(cell.implementation for cell in cells if cell.device == device):
            rows = [cell.implementation == name and cell.device == device for cell in cells]
            mine[name] = polished(times[rows])
        ceilings = _ceilings(runs, device)
        if len(ceilings):
            mine[CEILINGS] = polished(ceilings)
    return votes


def pace_for(votes: dict[str, Floats], implementation: str, runs: int) -> Floats:
    """The log pace by which an implementation is judged; zeros where it has no witness: it is judged as measured then."""
    others = [vote for name, vote in votes.items() if name != implementation]
    return anchored(polished(np.array(others))) if others else np.zeros(runs)


def polished(table: Floats) -> Floats:
    """How far each column of logarithms lies off, over all rows, by median polish; NaN where a column has nothing."""
    rest, columns = table.copy(), np.zeros(table.shape[1])
    for _ in range(POLISHING):
        rest -= _middle(rest, axis=1)[:, None]
        shift = _middle(rest, axis=0)
        rest, columns = rest - shift, columns + shift
    columns[~np.isfinite(table).any(axis=0)] = np.nan
    return columns


def anchored(columns: Floats) -> Floats:
    """Relative to the latest run."""
    return np.asarray(columns - columns[-1])


def together(times: Sequence[Floats]) -> Floats:
    """Several cells as one, relative to their first run: geometric means, as if each cell had been timed in every run.

    Least squares of log time = cell + run, so that a run which lacks the slow cells does not look fast. NaN where none was timed.
    """
    table = np.log(np.array(times))
    rest, columns = table.copy(), np.zeros(table.shape[1])
    for _ in range(POLISHING):
        rest -= _mean(rest, axis=1)[:, None]
        shift = _mean(rest, axis=0)
        rest, columns = rest - shift, columns + shift
    columns[~np.isfinite(table).any(axis=0)] = np.nan
    return np.asarray(np.exp(columns - columns[np.isfinite(columns)][0]))


def _ceilings(runs: Sequence[PastRun], device: str) -> Floats:
    """Log times of the ceilings' work, a row for each that was measured on a device."""
    rates = [
        {(c.dtype, c.what): c.rate for c in run.ceilings if c.device == device and c.rate > 0} for run in runs
    ]
    keys = list(dict.fromkeys(key for rates_of_run in rates for key in rates_of_run))
    rows = [
        [-math.log(rates_of_run[key]) if key in rates_of_run else math.nan for rates_of_run in rates]
        for key in keys
    ]
    return np.array(rows, dtype=float).reshape(-1, len(runs))


def _middle(table: Floats, axis: int) -> Floats:
    """Medians without NaN; 0 of nothing."""
    masked: Any = np.ma
    medians: Floats = masked.median(masked.masked_invalid(table), axis=axis).filled(0.0)
    return medians


def _mean(table: Floats, axis: int) -> Floats:
    """Means without NaN; 0 of nothing."""
    known = np.isfinite(table)
    return np.asarray(np.where(known, table, 0.0).sum(axis=axis) / np.maximum(known.sum(axis=axis), 1))
