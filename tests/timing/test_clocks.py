"""The state of the cache and of the clock rates: said, made, and tested with caches and watches that are fakes."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify.contract import frameworks
from qkverify.errors import UsageError
from qkverify.timing import clocks


class Watch:
    """Time that moves only when it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds


class FakeCache:
    """A least-recently-used cache of so many bytes; touching what is not in it costs a hundred times as much."""

    def __init__(self, watch: Watch, size: int) -> None:
        self.watch, self.size, self.held = watch, size, OrderedDict[Any, int]()

    def touch(self, what: Any, size: int) -> None:
        self.watch.seconds += 1e-6 if what in self.held else 1e-4
        self.held.pop(what, None)
        self.held[what] = size
        while sum(self.held.values()) > self.size:
            self.held.popitem(last=False)


@pytest.mark.parametrize(("evicts", "cache", "seconds"), [(False, "hot", 1e-6), (True, "cold", 1e-4)])
def test_the_host_clock_says_whether_it_evicts_and_every_call_is_timed_so(
    evicts: bool, cache: str, seconds: float
) -> None:
    watch = Watch()
    held = FakeCache(watch, 100)

    def flush() -> None:
        watch.seconds += 1.0  # must not be seen in the sample
        held.touch("flush", 100)

    clock = clocks.HostClock(now=watch.now, evict=flush if evicts else None)
    call = lambda: held.touch("input", 10)  # noqa: E731
    clock.sample(call)
    assert clock.cache == cache
    assert clock.sample(call, repeats=5) == pytest.approx(seconds)


@pytest.mark.parametrize("cache", ["hot", "cold"])
def test_the_events_clock_flushes_only_when_it_is_cold(cache: clocks.Cache) -> None:
    class Mark:
        def passed(self) -> bool:
            return False

    class Stream:
        flushes = 0

        def synchronise(self) -> None: ...
        def hold(self, seconds: float) -> None: ...

        def mark(self) -> Mark:
            return Mark()

        def flush(self) -> None:
            self.flushes += 1

        def seconds_between(self, start: Any, end: Any) -> float:
            return 1.0

    stream = Stream()
    clock = clocks.EventsClock(stream, cache=cache)
    assert clock.sample(lambda: None, repeats=3) == 1.0
    assert clock.cache == cache
    assert stream.flushes == (3 if cache == "cold" else 0)


@pytest.mark.parametrize("footprint", [10, 30, 99, 100, 250])
def test_calls_that_take_turns_never_find_their_inputs_in_the_cache(footprint: int) -> None:
    watch, numbers = Watch(), itertools.count()
    held = FakeCache(watch, 100)

    def make() -> Callable[[], None]:
        number = next(numbers)
        return lambda: held.touch(number, footprint)

    call = clocks.rotating(make, footprint, 100)
    others = next(numbers) - 1
    assert others * footprint >= clocks.FLUSH_MULTIPLE * 100  # touched before the same inputs come again
    hot = make()
    for _ in range(20):
        before = watch.seconds
        call()
        assert watch.seconds - before == pytest.approx(1e-4)
    hot()
    before = watch.seconds
    hot()
    assert watch.seconds - before == pytest.approx(1e-6 if footprint <= 100 else 1e-4)


def test_the_size_of_the_cache_is_the_systems(tmp_path: Path) -> None:
    for index, size in enumerate(["32K", "1024K", "32M", "unknown"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert clocks.cache_bytes(tmp_path) == 32 * 2**20
    assert clocks.cache_bytes(tmp_path / "nowhere") is None


def test_a_cache_of_unknown_size_cannot_be_made_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "cache_bytes", lambda: None)
    with pytest.raises(UsageError, match="the cache cannot be flushed"):
        clocks.clock_for("numpy", "cpu", lambda device: None, cache="cold")
    assert clocks.clock_for("numpy", "cpu", lambda device: None).cache == "hot"


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_eviction_writes_twice_the_cache(arrays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if frameworks.missing(arrays):
        pytest.skip(str(frameworks.missing(arrays)))
    monkeypatch.setattr(clocks, "cache_bytes", lambda: 1000)
    made: list[np.ndarray] = []
    zeros = np.zeros
    monkeypatch.setattr(clocks.np, "zeros", lambda *shape: made.append(zeros(*shape)) or made[-1])
    clock = clocks.clock_for(arrays, "cpu", lambda device: None, cache="cold")
    clock.sample(lambda: None, repeats=3)
    assert clock.cache == "cold"
    assert made[0].nbytes == 2000
    assert set(made[0].tolist()) == {3}


def samples(watch: Watch, seconds: list[float]) -> tuple[clocks.HostClock, Callable[[], None]]:
    """A clock and a call that takes these seconds, then the last of them for ever."""
    left = iter(seconds)

    def call() -> None:
        watch.seconds += next(left, seconds[-1])

    return clocks.HostClock(now=watch.now), call


def test_warm_up_ends_once_two_rows_of_samples_agree() -> None:
    watch = Watch()
    rising = [0.1 * 0.97**step for step in range(60)]  # a clock that rises, then stays
    warmed = clocks.warm_up(*samples(watch, rising), now=watch.now)
    assert warmed.steady
    assert 60 < len(warmed.samples) < 90
    assert warmed.samples[-1] == pytest.approx(rising[-1])


def test_a_device_between_two_steps_of_its_clock_is_not_taken_for_warm() -> None:
    watch = Watch()
    steps = [0.01] * 25 + [0.005] * 30
    warmed = clocks.warm_up(*samples(watch, steps), least_seconds=0.3, now=watch.now)
    assert warmed.steady
    assert len(warmed.samples) > 25 + clocks.WARM_ROW


def test_a_device_that_never_settles_is_given_up_and_said_so() -> None:
    watch = Watch()
    slower = [0.01 * 1.01**step for step in range(2000)]
    warmed = clocks.warm_up(*samples(watch, slower), most_seconds=3.0, now=watch.now)
    assert not warmed.steady
    assert math.fsum(warmed.samples) < 3.5
