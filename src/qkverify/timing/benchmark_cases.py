"""Which cells there are to time, and why some cannot run.

A cell is one implementation on one workload, device and dtype, in one direction. Nothing is left out
silently: a cell that cannot be timed carries its reason, and the reason enters the results in place of times.
What laws and findings say against a cell is decided in `marks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from qkverify.contract import DEVICES, Implementation, registry
from qkverify.contract.modules_used import has_triton_kernels
from qkverify.results import Direction, Group
from qkverify.timing.workloads import Workload, in_small_grid, small_grid

DIRECTIONS: tuple[Direction, ...] = (
    "forward",
    "forward+backward",
)  # of the grid; "backward" where it is asked for
BACKWARD: tuple[Direction, ...] = ("backward", "forward+backward")
IMPORTANCE = ("float32", "bfloat16", "float64", "float16")  # of dtypes, where time is short
INTERPRETED = "runs in Triton's interpreter on a CPU, whose speed says nothing about the kernel"


@dataclass(frozen=True)
class BenchmarkCase:
    """One time to be taken."""

    workload: Workload
    implementation: Implementation
    device: str
    dtype: str
    direction: Direction

    @property
    def group(self) -> Group:
        """Cells of one group do the same work, and are timed against each other."""
        return self.workload.name, self.direction, self.device, self.dtype

    @property
    def title(self) -> str:
        """The group as a person reads it."""
        return " ".join(self.group)

    @property
    def id(self) -> str:
        case, direction, device, dtype = self.group
        return f"{case}-{direction}-{self.implementation.name}-{device}-{dtype}"


def cells_of(
    implementations: Iterable[Implementation],
    *,
    workloads: Callable[[str], Sequence[Workload]] = small_grid,
    devices: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    directions: Sequence[Direction] = DIRECTIONS,
) -> list[BenchmarkCase]:
    """Every cell of the grid. Without `devices`: those on which anything here can run. Of the small grid only the directions
    and dtypes that it has, unless others were asked for.

    The order is that of importance, for runs that end early: dtype by dtype, forward first, short cases
    first.
    """
    attention = [
        implementation for implementation in implementations if implementation.operation == "attention"
    ]
    usable = [
        d
        for d in DEVICES
        if any(registry.devices_of(implementation, (d,))[d] is None for implementation in attention)
    ]
    return [
        BenchmarkCase(workload, implementation, device, dtype, direction)
        for device in (devices or usable)
        for dtype in IMPORTANCE
        if not dtypes or dtype in dtypes
        for direction in directions
        for workload in workloads(device)
        for implementation in attention
        if dtype in implementation.dtypes and device in implementation.devices
        if workloads is not small_grid
        or in_small_grid(
            workload.name,
            device,
            direction if tuple(directions) == DIRECTIONS else None,
            None if dtypes else dtype,
        )
    ]


def groups_of(cells: Iterable[BenchmarkCase]) -> list[list[BenchmarkCase]]:
    """The cells by group, groups in the order of their first cell."""
    order = {group: index for index, group in enumerate(dict.fromkeys(cell.group for cell in cells))}
    ordered = sorted(cells, key=lambda cell: order[cell.group])
    return [list(group) for _, group in groupby(ordered, key=lambda cell: cell.group)]


def why_not_run(cell: BenchmarkCase) -> str | None:
    """Why this machine or this implementation cannot show a speed here, or None."""
    implementation = cell.implementation
    absent = registry.devices_of(implementation, (cell.device,))[cell.device]
    if absent is not None:
        return absent
    if cell.device == "cpu" and has_triton_kernels(implementation.function):
        return INTERPRETED
    return not_offered(cell)


def not_offered(cell: BenchmarkCase) -> str | None:
    """What the workload needs that the implementation does not offer, or None."""
    implementation = cell.implementation
    missing = sorted(used_by(cell) - implementation.offers)
    if missing:
        return f"not offered: {', '.join(missing)}"
    broken = implementation.accepts(cell.workload.sizes)
    return None if broken is None else f"not offered: requires {broken}"


def used_by(cell: BenchmarkCase) -> set[str]:
    """The options that a call of the cell uses, and "gradients"."""
    workload = cell.workload
    used: Mapping[str, bool] = {
        "causal": workload.causal,
        "window": workload.window is not None,
        "key_lengths": workload.key_lengths is not None,
        "scale": workload.scale is not None,
        "softcap": workload.softcap is not None,
        "gradients": cell.direction in BACKWARD,
    }
    return {name for name, is_used in used.items() if is_used}
