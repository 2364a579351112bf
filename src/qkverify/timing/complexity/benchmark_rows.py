"""The growth of layers in pytest-benchmark's tables: one row for each variable of each layer at each place.

As in `benchmark_session`, the engine measures and `Replay` hands the samples over. A row shows the times at its largest size; its
`extra_info` has the exponent and all the rest. With `--benchmark-disable` nothing is timed: a layer's result is compared with its
definition, and its counted operations with the formula.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from qkverify.results import Complexity
from qkverify.timing.complexity import fitting
from qkverify.timing.complexity.layer import Layer
from qkverify.timing.complexity.measuring import (
    FrameworkOnDevice,
    LayerSeries,
    checked,
    measure_series,
    places,
    series,
)
from qkverify.timing.pytest_benchmark import Benchmark, Replay
from qkverify.verification import pytest_options

ROWS: pytest.StashKey[Rows] = pytest.StashKey()


class Rows:
    """The rows of one pytest session, a series measured at all its places when the first of its tests is reached."""

    def __init__(self, where: Iterable[FrameworkOnDevice], *, row_seconds: float = 1.0) -> None:
        self.rows = {
            f"{layer_series.layer.name} {layer_series.variable} {place.framework} {place.device}".replace(
                " ", "-"
            ): (
                layer_series,
                place,
            )
            for layer_series in series()
            for place in where
        }
        self.clock = Replay()
        self._row_seconds = row_seconds
        self._selected = set(self.rows)
        self._measured: dict[LayerSeries, dict[FrameworkOnDevice, Complexity]] = {}

    def parameters(self) -> list[Any]:
        """One pytest parameter a row, grouped in the table with the same variable at the other places."""
        return [
            pytest.param(
                name, id=name, marks=pytest.mark.benchmark(timer=self.clock, group=layer_series.title)
            )
            for name, (layer_series, _) in self.rows.items()
        ]

    def select_from(self, items: Iterable[pytest.Item]) -> None:
        """Only the rows of these tests are measured: those that are left after pytest's own selection."""
        parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
        self._selected = {given["row"] for given in parameters if "row" in given}

    def enter(self, benchmark: Benchmark, name: str) -> None:
        """Fails a row whose code is not the layer that its formula counts; hands the samples of the others over."""
        layer_series, place = self.rows[name]
        _, reason = checked(layer_series.layer, place)
        if reason:
            pytest.fail(f"{name}: {reason}")
        if benchmark.disabled:
            benchmark.pedantic(
                lambda: None, rounds=1, iterations=1
            )  # else it warns of a fixture that was not used
            return
        record = self._record(layer_series, place)
        if not any(record.seconds):
            pytest.fail(f"{name}: {record.reason}")
        benchmark.extra_info.update(facts(layer_series.layer, record))
        samples = iter(record.seconds[-1])
        benchmark.pedantic(
            lambda: self.clock.advance(next(samples)), rounds=len(record.seconds[-1]), iterations=1
        )

    def _record(self, layer_series: LayerSeries, place: FrameworkOnDevice) -> Complexity:
        if layer_series not in self._measured:
            where = [p for name, (s, p) in self.rows.items() if s == layer_series and name in self._selected]
            records = measure_series(layer_series, where, budget_seconds=self._row_seconds * len(where))
            self._measured[layer_series] = dict(zip(where, records, strict=True))
        return self._measured[layer_series][place]


def facts(measured: Layer, record: Complexity) -> dict[str, Any]:
    """What stands beside the times in pytest-benchmark's JSON."""
    fit = fitting.growth(record)
    return {
        "layer": record.layer,
        "formula": record.formula,
        "variable": record.variable,
        "fixed": record.fixed,
        "sizes": record.sizes,
        "least_seconds": [min(times, default=None) for times in record.seconds],
        "multiply_adds": record.multiply_adds,
        "theory": record.theory,
        "counted": fitting.counted(record),
        "exponent": None if fit is None else [fit.exponent, fit.low, fit.high],
        "word": None if fit is None else fit.word(record.theory),
        "sequential_steps": measured.steps,
        "path_length": measured.path,
        "implementation": record.implementation,
        "device": record.device,
        "dtype": record.dtype,
        "clock": record.clock,
        "threads": record.threads,
        "margin": record.margin,
    }


def rows_of(config: pytest.Config) -> Rows:
    """The session's rows: at the places of `--device`, or all that there are."""
    if ROWS not in config.stash:
        where = places(pytest_options.value(config, "device"))
        config.stash[ROWS] = Rows(where, row_seconds=float(config.getoption("benchmark_max_time")))
    return config.stash[ROWS]
