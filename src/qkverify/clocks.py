"""Clocks: how long one call takes, by the host's watch or by events on a CUDA stream.

The host clock reads `time.perf_counter` around calls whose work is waited for: right for a CPU, and on a GPU
it would add the launch of every kernel. The events clock measures on the device between two events in the
stream. Two things would spoil that, and both are kept out of the measured part:

launch gaps   A stream that waits for the host between kernels shows the host's speed. So the stream is first
held by
              a delay kernel while everything is queued behind it. Whether the queue stayed full is checked
              (the first event must not have passed when the last call is queued); if it ran dry the delay is
              doubled and the sample taken again. A call that itself waits for the device can never be queued:
              after a few doublings its time is taken with its gaps, which are then its own.
warm cache    Before every call a buffer of twice the L2 cache is overwritten.

The CUDA part works on a small `Stream` interface, so that its logic is tested without a GPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from qkverify.results import Clock as ClockName

Call = Callable[[], Any]


class Clock(Protocol):
    """`name` enters the results; `sample` gives the seconds of a call, as the mean of `repeats` in a row."""

    name: ClockName

    def sample(self, call: Call, repeats: int = 1) -> float: ...

    def resolution_seconds(self) -> float: ...


class HostClock:
    """`time.perf_counter` around calls; `wait` is given the last result and returns when its work is done."""

    name: ClockName = "host"

    def __init__(
        self, wait: Callable[[Any], None] = lambda result: None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._wait, self._now = wait, now

    def sample(self, call: Call, repeats: int = 1) -> float:
        self._wait(None)
        with _no_collection():
            start = self._now()
            for _ in range(repeats):
                result = call()
            self._wait(result)
            return (self._now() - start) / repeats

    def resolution_seconds(self) -> float:
        """The smallest step that the clock was seen to make."""
        steps = []
        for _ in range(20):
            start = end = self._now()
            while end == start:
                end = self._now()
            steps.append(end - start)
        return min(steps)


class ThreadClock(HostClock):
    """What the calling thread itself computed, without what other programs took of its core: for calls on one thread of a CPU."""

    name: ClockName = "thread"

    def __init__(self) -> None:
        super().__init__(now=time.thread_time)

    def resolution_seconds(self) -> float:
        """As the system says: a reading takes longer than a step, but it adds the same to every sample, under a microsecond."""
        return time.get_clock_info("thread_time").resolution


class Event(Protocol):
    """A mark in a stream."""

    def passed(self) -> bool: ...


class Stream(Protocol):
    """What the events clock needs of a device."""

    def synchronise(self) -> None: ...

    def mark(self) -> Event:
        """Queue a mark behind the work so far."""
        ...

    def hold(self, seconds: float) -> None:
        """Queue a delay of about so long."""
        ...

    def flush(self) -> None:
        """Queue an overwriting of the L2 cache."""
        ...

    def seconds_between(self, start: Any, end: Any) -> float:
        """Between two of this stream's marks that have passed."""
        ...


class EventsClock:
    """Events around every call, the queue kept full, the cache flushed; `starved` samples ran dry."""

    name: ClockName = "events"
    LONGEST_HOLD_SECONDS = 0.5

    def __init__(self, stream: Stream, hold_seconds: float = 0.001) -> None:
        self._stream, self._hold_seconds = stream, hold_seconds
        self.starved = 0

    def sample(self, call: Call, repeats: int = 1) -> float:
        while True:
            seconds, queued = self._attempt(call, repeats)
            if queued:
                return seconds
            if 2 * self._hold_seconds > self.LONGEST_HOLD_SECONDS:
                self.starved += 1
                return seconds
            self._hold_seconds *= 2

    def _attempt(self, call: Call, repeats: int) -> tuple[float, bool]:
        """Seconds of one call, and whether all of it was queued before the first call began."""
        stream, marks = self._stream, []
        stream.synchronise()
        with _no_collection():
            stream.hold(self._hold_seconds)
            for _ in range(repeats):
                stream.flush()
                start = stream.mark()
                call()
                marks.append((start, stream.mark()))
            queued = not marks[0][0].passed()
        stream.synchronise()
        return sum(stream.seconds_between(start, end) for start, end in marks) / repeats, queued

    def resolution_seconds(self) -> float:
        """Half a microsecond: the resolution that CUDA documents for cudaEventElapsedTime."""
        return 0.5e-6


class CudaStream:
    """The current stream of torch's current CUDA device."""

    PROBE_CYCLES = 10_000_000

    def __init__(self) -> None:
        import torch

        self._cuda: Any = torch.cuda
        cache_bytes = torch.cuda.get_device_properties().L2_cache_size
        self._buffer = torch.empty(2 * cache_bytes, dtype=torch.int8, device="cuda")
        self._cycles_per_second = self._measure_cycles()

    def synchronise(self) -> None:
        self._cuda.synchronize()

    def mark(self) -> CudaEvent:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return CudaEvent(event)

    def hold(self, seconds: float) -> None:
        self._cuda._sleep(int(seconds * self._cycles_per_second))

    def flush(self) -> None:
        self._buffer.zero_()

    def seconds_between(self, start: CudaEvent, end: CudaEvent) -> float:
        return float(start.event.elapsed_time(end.event)) / 1e3  # CUDA gives milliseconds

    def _measure_cycles(self) -> float:
        for _ in range(2):  # the first delay includes loading its kernel
            start = self.mark()
            self._cuda._sleep(self.PROBE_CYCLES)
            end = self.mark()
            self.synchronise()
        return self.PROBE_CYCLES / self.seconds_between(start, end)


class CudaEvent:
    """A torch CUDA event as a mark."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def passed(self) -> bool:
        return bool(self.event.query())


def clock_for(arrays: str, device: str, synchronise: Callable[[str], None]) -> Clock:
    """Events for torch on CUDA, else the host's clock: JAX has no events, its arrays are waited for."""
    if arrays == "torch" and device == "cuda":
        return EventsClock(CudaStream())

    def wait(result: Any) -> None:
        block_until_ready(result)
        synchronise(device)

    return HostClock(wait)


def block_until_ready(result: Any) -> None:
    """Wait for every array in a nest of tuples, lists and dicts that knows how to be waited for (JAX's)."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        for part in result:
            block_until_ready(part)
    elif hasattr(result, "block_until_ready"):
        result.block_until_ready()


@contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector stays out of the sample, as in timeit."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
