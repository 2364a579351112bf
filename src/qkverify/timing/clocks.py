"""Clocks: how long one call takes, by the host's watch or by events on a CUDA stream.

The host clock reads `time.perf_counter` around calls whose work is waited for: right for a CPU, and on a GPU
it would add the launch of every kernel. The events clock measures on the device between two events in the
stream. Two things would spoil that, and both are kept out of the measured part:

launch gaps   A stream that waits for the host between kernels shows the host's speed. So the stream is first
              held by a delay kernel while everything is queued behind it. Whether the queue stayed full is checked
              (the first event must not have passed when the last call is queued); if it ran dry the delay is
              doubled and the sample taken again. A call that itself waits for the device can never be queued:
              after a few doublings its time is taken with its gaps, which are then its own.
warm cache    Before every call a buffer of twice the L2 cache is overwritten.

Which state the cache is in is part of what is measured, so every clock says it: `cache` is "cold" or "hot". Events
are cold unless asked otherwise, the host's clock is hot: repeated calls find on a CPU what the last one left.
Asked for cold, the host's clock touches twice the last-level cache before every call, outside of the
measured part. That costs milliseconds each time; calls that take turns on several copies of their inputs
(`rotating`) need no flush, and a hot clock then sees cold data. The ugly spot: on a CPU the second-level
caches of cores that the flush did not run on keep what they have.

The CUDA part works on a small `Stream` interface, so that its logic is tested without a GPU.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np

from qkverify.errors import UsageError
from qkverify.results import Cache
from qkverify.results import Clock as ClockName

Call = Callable[[], Any]
# Everything that is timed here asks these, and not the module `time`, where a kernel can put others in their place.
ORIGINALS: dict[str, Callable[[], float]] = {
    name: getattr(time, name)
    for name in (
        "perf_counter",
        "perf_counter_ns",
        "monotonic",
        "monotonic_ns",
        "process_time",
        "thread_time",
        "time",
    )
}
now, process_time = ORIGINALS["perf_counter"], ORIGINALS["process_time"]
FLUSH_MULTIPLE = 2  # of the cache: pseudo-random replacement leaves some of a flush of its very size
WARM_ROW, STEADY = 10, 0.01  # see `warm_up`
SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Clock(Protocol):
    """`name` enters the results; `sample` gives the seconds of a call, as the mean of `repeats` in a row."""

    name: ClockName

    @property
    def cache(self) -> Cache: ...

    def sample(self, call: Call, repeats: int = 1) -> float: ...

    def resolution_seconds(self) -> float: ...


class HostClock:
    """`time.perf_counter` around calls; `wait` is given the last result and returns when its work is done.

    With `evict`, which empties the cache, it is called before every call and every call is timed by itself.
    """

    name: ClockName = "host"

    def __init__(
        self,
        wait: Callable[[Any], None] = lambda result: None,
        now: Callable[[], float] = time.perf_counter,
        evict: Callable[[], object] | None = None,
    ) -> None:
        self._wait, self._now, self._evict = wait, now, evict

    @property
    def cache(self) -> Cache:
        return "hot" if self._evict is None else "cold"

    def sample(self, call: Call, repeats: int = 1) -> float:
        if self._evict is None:
            return self._row(call, repeats) / repeats
        seconds = 0.0
        for _ in range(repeats):
            self._evict()
            seconds += self._row(call, 1)
        return seconds / repeats

    def _row(self, call: Call, repeats: int) -> float:
        self._wait(None)
        with _no_collection():
            result = None
            start = self._now()
            for _ in range(repeats):
                result = None  # freed before the next call, as in timeit: else each would find other memory than the last
                result = call()
            self._wait(result)
            return self._now() - start

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
    """Events around every call, the queue kept full, the cache flushed if cold; `starved` samples ran dry."""

    name: ClockName = "events"
    LONGEST_HOLD_SECONDS = 0.5

    def __init__(self, stream: Stream, hold_seconds: float = 0.001, cache: Cache = "cold") -> None:
        self._stream, self._hold_seconds, self.cache = stream, hold_seconds, cache
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
                if self.cache == "cold":
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
        self._buffer = torch.empty(FLUSH_MULTIPLE * cache_bytes, dtype=torch.int8, device="cuda")
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


def restore_clocks() -> str:
    """Put the clocks of the module `time` back where somebody replaced them; what was seen, "" where nobody did."""
    replaced = [name for name, clock in ORIGINALS.items() if getattr(time, name) is not clock]
    for name in replaced:
        setattr(time, name, ORIGINALS[name])
    names = ", ".join(f"time.{name}" for name in replaced)
    return names and f"the timed call or its module replaced {names}: who sets the clock gets no time"


def clock_for(
    arrays: str, device: str, synchronise: Callable[[str], None], cache: Cache | None = None
) -> Clock:
    """Events for torch on CUDA, else the host's clock: JAX has no events, its arrays are waited for.

    Without `cache`, events are cold and the host's clock is hot. Raises UsageError where a cold cache is asked
    for and nothing is known of how large it is.
    """
    if arrays == "torch" and device == "cuda":
        return EventsClock(CudaStream(), cache=cache or "cold")

    def wait(result: Any) -> None:
        block_until_ready(result)
        synchronise(device)

    return HostClock(wait, evict=_eviction(arrays, device) if cache == "cold" else None)


def _eviction(arrays: str, device: str) -> Callable[[], object]:
    """Reads and writes a buffer of twice the last-level cache, with the framework's own threads."""
    size = cache_bytes() if device == "cpu" else None
    if size is None:
        raise UsageError(
            f"the size of the cache of {device} is not known for {arrays}, so the cache cannot be flushed"
        )
    buffer = np.zeros(FLUSH_MULTIPLE * size, np.uint8)
    if arrays == "torch":
        import torch

        tensor = torch.from_numpy(buffer)
        return partial(tensor.add_, 1)
    return partial(np.add, buffer, 1, out=buffer)


def cache_bytes(caches: Path = SYSTEM_CACHES) -> int | None:
    """The largest cache of the first core, in bytes; None where the system does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = []
    for file in caches.glob("index*/size"):
        text = file.read_text().strip()
        with suppress(ValueError):
            sizes.append(int(text.rstrip("KMG")) * units.get(text[-1:], 1))
    return max(sizes, default=None)


def rotating(make: Callable[[], Call], footprint_bytes: int, cached_bytes: int) -> Call:
    """A call that takes turns on copies of its inputs, so many that none is in the cache when its turn comes again.

    `make` gives a call on inputs of its own, `footprint_bytes` is what one of them touches. The alternative to
    flushing where calls are short: nothing is done between them.
    """
    # so that the others alone are a flush
    copies = 1 + math.ceil(FLUSH_MULTIPLE * cached_bytes / max(1, footprint_bytes))
    turns = itertools.cycle([make() for _ in range(copies)])
    return lambda: next(turns)()


class WarmUp(NamedTuple):
    """Whether the samples became `steady`, and all of them in seconds."""

    steady: bool
    samples: list[float]


def warm_up(
    clock: Clock,
    call: Call,
    *,
    least_seconds: float = 0.5,
    most_seconds: float = 5.0,
    now: Callable[[], float] = time.perf_counter,
) -> WarmUp:
    """Make calls until the last ten differ from the ten before them by less than 1 % in the median.

    1 % is the width within which two halves of an A/A control must agree. At least `least_seconds`: a GPU that
    was idle raises its clocks in steps, and looks steady between two of them.
    """
    start, samples = now(), list[float]()
    while now() - start < most_seconds:
        samples.append(clock.sample(call))
        if len(samples) >= 2 * WARM_ROW and now() - start >= least_seconds:
            before, last = samples[-2 * WARM_ROW : -WARM_ROW], samples[-WARM_ROW:]
            if abs(median(last) - median(before)) <= STEADY * median(last):
                return WarmUp(True, samples)
    return WarmUp(False, samples)


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
