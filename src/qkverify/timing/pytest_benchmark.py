"""The engine's times in pytest-benchmark's tables.

pytest-benchmark's own loop times test after test, sees only the launch of a CUDA kernel, and cannot flush a
cache. Its `pedantic` mode with a timer of one's own is a public door: the value of `Replay` is seconds that
were measured elsewhere, added up, so each call that pytest-benchmark "times" takes exactly the next sample.
The samples are taken by `measurement`, a whole group at the first of its tests, interleaved over the
implementations that were selected.

So all its options work (`--benchmark-json`, `--benchmark-compare`, `--benchmark-group-by`, ...).
`--benchmark-max-time` is the budget of one cell. With `--benchmark-disable` every cell is called once and its
output checked, nothing timed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import pytest

from qkverify import foreign_text, probes
from qkverify.contract import Implementation, registry
from qkverify.errors import UnsupportedCase, UsageError
from qkverify.results import Ceiling, Timing
from qkverify.timing.benchmark_cases import BenchmarkCase, cells_of
from qkverify.timing.ceilings import fraction_of_roofline, measure_ceilings
from qkverify.timing.grid import Speeds, believed, showing_growth, why_not
from qkverify.timing.marks import Known, words
from qkverify.timing.measurement import MeasuredGroup, checked, measure, prepared
from qkverify.timing.memory import Server
from qkverify.timing.statistics import median
from qkverify.timing.untimed import refused
from qkverify.verification import pytest_options, settings

SESSION: pytest.StashKey[BenchmarkSession] = pytest.StashKey()


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture."""

    disabled: bool
    extra_info: dict[str, Any]

    def pedantic(self, target: Any, *, rounds: int, iterations: int) -> Any: ...


class Replay:
    """A timer that shows the seconds handed to `advance`, added up."""

    __name__ = "measured_seconds"

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        return self._seconds

    def advance(self, seconds: float) -> None:
        self._seconds += seconds


class BenchmarkSession:
    """The cells of one pytest session, measured group by group as their tests are reached."""

    def __init__(self, cells: Sequence[BenchmarkCase], *, cell_seconds: float = 1.0) -> None:
        self.cells = {cell.id: cell for cell in cells}
        self.clock = Replay()
        self._cell_seconds = cell_seconds
        self._selected: set[str] = set(self.cells)
        known = Known()
        self._marks = {cell: known.marks(cell) for cell in cells}
        self._reasons = why_not(cells, known, self._marks)
        self._shown = showing_growth([cell for cell in cells if self._reasons[cell] is None])
        self._measured: dict[tuple[str, ...], MeasuredGroup] = {}
        self._ceilings: dict[tuple[str, str], list[Ceiling]] = {}
        self._speeds, self._server = Speeds(), Server()

    def close(self) -> None:
        """End the process that measures memory."""
        self._server.close()

    def select_from(self, items: Iterable[pytest.Item]) -> None:
        """Only the cells of these tests are measured: those that are left after pytest's own selection."""
        parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
        self._selected = {given["cell"] for given in parameters if "cell" in given}

    def parameters(self) -> list[Any]:
        """One pytest parameter a cell, grouped in the table with the cells that do the same work."""
        return [
            pytest.param(name, id=name, marks=pytest.mark.benchmark(timer=self.clock, group=cell.title))
            for name, cell in self.cells.items()
        ]

    def enter(self, benchmark: Benchmark, name: str) -> None:
        """Measure the cell's group, unless done, and hand the cell's samples to pytest-benchmark.

        Skips a cell that is not offered or not available, with the reason; fails one that raised or was
        wrong.
        """
        cell = self.cells[name]
        if self._reasons[cell] is not None:
            pytest.skip(self._reasons[cell] or "")
        if benchmark.disabled:
            self._once(cell)
            return
        group = self._group(cell)
        timing = next(t for t in group.timings if t.implementation == cell.implementation.name)
        timing = believed(timing, self._ceilings_of(cell))
        if not timing.seconds:
            (pytest.fail if refused([timing]) else pytest.skip)(timing.reason)
        benchmark.extra_info.update(self.facts(cell, timing, group))
        samples = iter(timing.seconds)
        benchmark.pedantic(
            lambda: self.clock.advance(next(samples)), rounds=len(timing.seconds), iterations=1
        )

    def facts(self, cell: BenchmarkCase, timing: Timing, group: MeasuredGroup) -> dict[str, Any]:
        """What stands beside the times in pytest-benchmark's JSON."""
        middle = median(timing.seconds)  # of the very samples in the table
        share = fraction_of_roofline(timing, middle, self._ceilings_of(cell))
        control = group.control
        return {
            "implementation": timing.implementation,
            "case": timing.case,
            "sizes": timing.sizes,
            "device": timing.device,
            "dtype": timing.dtype,
            "direction": timing.direction,
            "clock": timing.clock,
            "rounds": timing.rounds,
            "tflop_per_second": timing.flops / middle / 1e12,
            "percent_of_roofline": None if share is None else 100 * share,
            "flops": timing.flops,
            "bytes": timing.bytes,
            "peak_bytes": timing.peak_bytes,
            "margin": timing.margin,
            "marks": [words(mark) for mark in self._marks[cell]],
            "control": None if control is None else [control.ratio, control.low, control.high],
        }

    def _once(self, cell: BenchmarkCase) -> None:
        """The cell without a clock: called, and its output checked."""
        try:
            ready = prepared(cell)
            ready.call()
        except UnsupportedCase as refusal:
            pytest.skip(f"not offered: {foreign_text.shown(refusal)}")
        _, wrong = checked(ready)
        if wrong:
            pytest.fail(f"{cell.id}: {wrong}")

    def _group(self, cell: BenchmarkCase) -> MeasuredGroup:
        if cell.group not in self._measured:
            group = [c for c in self.cells.values() if c.group == cell.group and c.id in self._selected]
            self._measured[cell.group] = measure(
                group,
                budget_seconds=self._cell_seconds * len(group),
                verified=self._reasons,
                peaks=self._peaks(group),
                expected_seconds=self._speeds.expected(group),
            )
            self._speeds.learn(self._measured[cell.group].call_seconds)
        return self._measured[cell.group]

    def _peaks(self, group: Sequence[BenchmarkCase]) -> dict[BenchmarkCase, int]:
        peaks = {
            c: self._server.peak_bytes(c.implementation, c.workload, c.device, c.dtype, c.direction)
            for c in group
            if c in self._shown
        }
        return {cell: peak for cell, peak in peaks.items() if peak is not None}

    def _ceilings_of(self, cell: BenchmarkCase) -> list[Ceiling]:
        place = cell.device, cell.dtype
        if place not in self._ceilings:
            self._ceilings[place] = list(measure_ceilings([(cell.device, "float32"), place]))
        return self._ceilings[place]


def session_of(config: pytest.Config) -> BenchmarkSession:
    """The session's cells: those of `--implementation`, `--device` and `--dtype`, or all that there are."""
    if SESSION not in config.stash:
        cells = cells_of(
            _chosen(config),
            devices=pytest_options.value(config, "device"),
            dtypes=pytest_options.value(config, "dtype"),
        )
        seconds = float(config.getoption("benchmark_max_time"))
        config.stash[SESSION] = session = BenchmarkSession(cells, cell_seconds=seconds)
        config.add_cleanup(session.close)
    return config.stash[SESSION]


def _chosen(config: pytest.Config) -> list[Implementation]:
    targets = pytest_options.value(config, "implementation")
    try:
        adapted = map(settings.read().adapted, targets)
        return [
            implementation for target in adapted for implementation in probes.find(target)
        ] or registry.load_folder()
    except UsageError as error:  # a collection error of this kind shows its sentence and no traceback
        raise pytest.Collector.CollectError(str(error)) from None
