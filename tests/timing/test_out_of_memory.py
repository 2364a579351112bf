"""A cell that does not fit into the GPU's memory: its outcome is that sentence, the others go on, and what it held is free again.

torch raises the same exception on a build without CUDA, so a fake raises it here.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from qkverify.contract import describe
from qkverify.timing import clocks, measurement, memory
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.work import Work
from qkverify.timing.workloads import named

torch = pytest.importorskip("torch")
SAID = "CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has a total capacity of 139.80 GiB"


class Operand:
    """What a cell holds on the device."""


def cell(name: str) -> BenchmarkCase:
    implementation = describe(lambda query, key, value: query, name=name, arrays="numpy", dtypes=("float32",))
    return BenchmarkCase(named("transformer-base-128"), implementation, "cpu", "float32", "forward")


@pytest.mark.parametrize("calls_before", [0, 1, 6], ids=["first call", "warm-up", "a later round"])
def test_out_of_memory_is_the_cells_outcome_and_the_others_go_on(calls_before: int) -> None:
    seconds, held = [0.0], list[weakref.ref[Operand]]()

    def prepare(case: BenchmarkCase) -> measurement.Prepared:
        operand, left = Operand(), [calls_before if case.implementation.name == "large" else 10**6]
        if case.implementation.name == "large":
            held.append(weakref.ref(operand))

        def call(operand: Operand = operand) -> None:
            left[0] -= 1
            seconds[0] += 0.02
            if left[0] < 0:
                raise torch.cuda.OutOfMemoryError(SAID + "\n of which 3 GiB are free")

        def now() -> float:
            seconds[0] += 1e-9  # the clock's step
            return seconds[0]

        clock = clocks.HostClock(now=now)
        return measurement.Prepared(call, clock, Work(1, 1), lambda output: 0.0)

    group = [cell("small"), cell("large"), cell("fine")]
    measured = measurement.measure(group, budget_seconds=20.0, prepare=prepare)
    small, large, fast = measured.timings
    assert large.reason == f"raised OutOfMemoryError: {SAID}"
    assert (large.seconds, large.verified) == ([], False)
    assert small.seconds
    assert fast.seconds
    gc.collect()
    assert [reference() for reference in held] == [None]


def test_a_peak_that_does_not_fit_is_unknown_and_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*facts: Any) -> int:
        raise torch.cuda.OutOfMemoryError(SAID)

    monkeypatch.setattr(memory, "cuda_peak_bytes", full)
    large = cell("large")
    with memory.Server() as server:
        assert server.peak_bytes(large.implementation, large.workload, "cuda", "float32", "forward") is None


class FakeMark:
    def passed(self) -> bool:
        return False


class FakeStream:
    """Counts how often all that was queued is waited for."""

    waits = 0

    def synchronise(self) -> None:
        self.waits += 1

    def hold(self, seconds: float) -> None: ...
    def flush(self) -> None: ...

    def mark(self) -> FakeMark:
        return FakeMark()

    def seconds_between(self, start: Any, end: Any) -> float:
        return 1.0


def test_a_call_that_fails_leaves_nothing_in_the_queue_that_is_timed_next() -> None:
    """The delay and the flush before a call are queued already when it raises."""
    stream = FakeStream()
    clock = clocks.EventsClock(stream)

    def full() -> None:
        raise torch.cuda.OutOfMemoryError(SAID)

    with pytest.raises(torch.cuda.OutOfMemoryError):
        clock.sample(full)
    waits = stream.waits
    assert clock.sample(lambda: None) == 1.0
    assert (
        stream.waits == waits + 2
    )  # once before, so that nothing of the failure is in front, and once after
