"""Timing: clocks measure what they say, rounds are fair, budgets are kept, only what is right gets a time."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify import results
from qkverify.contract import DTYPES, Implementation, describe, registry
from qkverify.errors import UnsupportedCase
from qkverify.results import Ceiling, Control, Timing, Verdict
from qkverify.runs.run import Run
from qkverify.timing import (
    benchmark_cases,
    ceilings,
    clocks,
    grid,
    measurement,
    memory,
    sampled_rows,
    sampling,
    statistics,
)
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.nvml import WAITED, DeviceReading
from qkverify.timing.sampling import SamplingPlan, Subject
from qkverify.timing.work import Work, work
from qkverify.timing.workloads import Workload

SHORT = Workload(name="short", source="these tests", heads=2, key_size=8, queries=24, batch=2, kv_heads=1)


def attention(query: Any, key: Any, value: Any, *, causal: bool = False, key_lengths: Any = None) -> Any:
    """Textbook attention, aligned bottom-right."""
    group = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    queries, keys = scores.shape[-2:]
    visible = np.tri(queries, keys, keys - queries, dtype=bool) if causal else np.ones((queries, keys), bool)
    if key_lengths is not None:
        visible = visible & (np.arange(keys) < key_lengths[:, None, None, None])
    scores = np.where(visible, scores, -1e30)
    weights = np.where(visible, np.exp(scores - scores.max(-1, keepdims=True)), 0).astype(query.dtype)
    total = weights.sum(-1, keepdims=True)
    return (weights / np.where(total == 0, 1, total)) @ value


def implementation(
    name: str = "mine", function: Callable[..., Any] = attention, **declared: Any
) -> Implementation:
    declared = {"dtypes": ("float32",), "causal_alignment": "bottom-right", "empty_rows": "zero", **declared}
    return describe(function, name=name, arrays="numpy", **declared)


def cell(name: str = "mine", workload: Workload = SHORT, **changes: Any) -> BenchmarkCase:
    facts = {"device": "cpu", "dtype": "float32", "direction": "forward", **changes}
    timed = facts.pop("implementation", None) or implementation(name)
    return BenchmarkCase(workload, timed, **facts)


class FakeTime:
    """A watch that only moves when told: calls take the seconds that they are given, growing with a drift."""

    def __init__(self, drift: float = 0.0, step: float = 1e-9) -> None:
        self.seconds, self.drift, self.step, self.log = 0.0, drift, step, list[str]()

    def now(self) -> float:
        self.seconds += self.step
        return self.seconds

    def call(self, name: str, seconds: float) -> Callable[[], str]:
        def run() -> str:
            self.log.append(name)
            self.seconds += seconds * (1 + self.drift * self.seconds)
            return name

        return run

    def subject(self, name: str, seconds: float) -> Subject:
        return Subject(self.call(name, seconds), clocks.HostClock(now=self.now))


class FakeMonitor:
    """Says of each round in turn whether the device was held back, and of each sample in turn how much of it was lost."""

    def __init__(self, held_back: Sequence[bool], samples: Sequence[float] = ()) -> None:
        self.left, self.open, self.settled = list(held_back), False, 0
        self.samples, self.began = list(samples), 0

    def before(self) -> None:
        assert not self.open
        self.open = True

    def settle(self) -> None:
        assert self.open
        self.settled += 1

    def begin_sample(self) -> None:
        assert self.open
        self.began += 1

    def share_lost(self, seconds: float) -> float:
        return self.samples.pop(0) if self.samples else 0.0

    def after(self) -> DeviceReading:
        assert self.open
        self.open = False
        held = self.left.pop(0) if self.left else False
        return DeviceReading(1.0, ("power cap",) if held else (), mhz=1000.0 + len(self.left), watts=300.0)


@pytest.fixture(autouse=True)
def nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times here are made up, and what this machine does meanwhile must not mark them."""
    monkeypatch.setattr(measurement, "_monitor", lambda device: None)


# Clocks


def test_the_host_clock_gives_the_mean_of_its_repeats_and_waits_for_the_last_result() -> None:
    time, waited = FakeTime(), list[Any]()
    clock = clocks.HostClock(waited.append, time.now)
    assert clock.sample(time.call("a", 0.5), repeats=4) == pytest.approx(0.5)
    assert waited == [None, "a"]
    assert clock.resolution_seconds() == pytest.approx(1e-9)


def test_results_that_know_how_are_waited_for_wherever_they_are() -> None:
    class Lazy:
        ready = False

        def block_until_ready(self) -> None:
            self.ready = True

    lazy = [Lazy() for _ in range(3)]
    clocks.block_until_ready((lazy[0], {"key": [lazy[1]], "value": lazy[2]}, None, 1.0))
    assert all(result.ready for result in lazy)


class FakeMark:
    def __init__(self, stream: FakeStream) -> None:
        self.stream, self.at = stream, stream.queue_end

    def passed(self) -> bool:
        return self.at <= self.stream.host


class FakeStream:
    """A device queue beside a host clock: work starts when it is queued and all before it is done."""

    FLUSH, LAUNCH = 2e-4, 1e-5

    def __init__(self) -> None:
        self.host = self.queue_end = 0.0
        self.flushes, self.holds, self.syncs = 0, list[float](), 0

    def work(self, seconds: float, launch: float = LAUNCH) -> None:
        self.host += launch
        self.queue_end = max(self.queue_end, self.host) + seconds

    def synchronise(self) -> None:
        self.syncs += 1
        self.host = max(self.host, self.queue_end)

    def mark(self) -> FakeMark:
        self.work(0.0, launch=0.0)
        return FakeMark(self)

    def hold(self, seconds: float) -> None:
        self.holds.append(seconds)
        self.work(seconds)

    def flush(self) -> None:
        self.flushes += 1
        self.work(self.FLUSH)

    def seconds_between(self, start: FakeMark, end: FakeMark) -> float:
        return end.at - start.at


def test_the_events_clock_hides_launches_that_are_slower_than_the_kernel() -> None:
    stream = FakeStream()
    clock = clocks.EventsClock(stream, hold_seconds=0.1)

    def call() -> None:
        for _ in range(5):
            stream.work(1e-5, launch=1e-3)

    assert clock.sample(call, repeats=3) == pytest.approx(5e-5)
    assert (stream.flushes, stream.holds, clock.starved) == (3, [0.1], 0)


def test_the_events_clock_holds_longer_when_the_queue_ran_dry() -> None:
    stream = FakeStream()
    clock = clocks.EventsClock(stream, hold_seconds=0.001)
    assert clock.sample(lambda: stream.work(1e-5, launch=1e-3), repeats=5) == pytest.approx(1e-5)
    assert stream.holds == [0.001, 0.002, 0.004, 0.008]
    assert clock.starved == 0


def test_a_call_that_waits_for_the_device_is_timed_with_its_gaps_and_counted() -> None:
    stream = FakeStream()
    clock = clocks.EventsClock(stream)

    def call() -> None:
        stream.work(1e-3)
        stream.synchronise()
        stream.work(1e-3, launch=5e-3)

    assert clock.sample(call) == pytest.approx(7e-3, rel=0.01)
    assert clock.starved == 1
    assert max(stream.holds) <= clock.LONGEST_HOLD_SECONDS


# Sampling


def test_every_round_runs_every_subject_once_in_an_order_of_its_own() -> None:
    time = FakeTime()
    subjects = {name: time.subject(name, 0.01) for name in "abcd"}
    plans = dict.fromkeys(subjects, SamplingPlan(1, 0.01))
    samples = sampling.interleave(subjects, budget_seconds=9, plans=plans, now=time.now)
    orders = {tuple(time.log[i : i + 4]) for i in range(0, len(time.log), 4)}
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(orders) > 5
    assert all(samples.rounds == list(range(sampling.MOST_ROUNDS)) for samples in samples.values())


def test_the_order_of_rounds_is_that_of_the_seed() -> None:
    def order(seed: int) -> list[str]:
        time = FakeTime()
        subjects = {name: time.subject(name, 0.01) for name in "abcd"}
        sampling.interleave(subjects, budget_seconds=9, seed=seed, now=time.now)
        return time.log

    assert order(1) == order(1) != order(2)


def test_a_drifting_machine_does_not_favour_a_subject() -> None:
    time = FakeTime(drift=0.5)
    subjects = {name: time.subject(name, 0.01) for name in "ab"}
    samples = sampling.interleave(subjects, budget_seconds=9, now=time.now)
    a, b = (np.array(samples[name].seconds) for name in "ab")
    assert a[-1] > 1.1 * a[0]
    assert abs(np.median(np.log(a / b))) < 0.01


def test_a_sample_is_long_enough_for_its_clock() -> None:
    time = FakeTime(step=1e-6)
    plan = sampling.calibrate(time.subject("a", 1e-4))
    assert plan.sample_seconds >= sampling.RESOLUTION_MULTIPLE * 1e-6
    assert plan.call_seconds == pytest.approx(1e-4, rel=0.05)


def test_warm_up_goes_on_until_two_samples_agree() -> None:
    time, durations = FakeTime(), iter([0.01, 0.005, 0.002, 0.001, 0.001, 0.001])
    subject = Subject(lambda: time.call("a", next(durations))(), clocks.HostClock(now=time.now))
    assert sampling.calibrate(subject).call_seconds == pytest.approx(0.001, rel=0.01)
    assert len(time.log) == 5


def test_a_long_call_is_warm_after_two() -> None:
    time, durations = FakeTime(), iter([2.0, 1.0, 0.5])
    subject = Subject(lambda: time.call("a", next(durations))(), clocks.HostClock(now=time.now))
    assert sampling.calibrate(subject).call_seconds == pytest.approx(1.0)


def test_a_call_beyond_the_budget_is_made_once_only() -> None:
    time = FakeTime()
    sampling.calibrate(time.subject("a", 5.0), limit_seconds=1.0)
    assert time.log == ["a"]


def test_what_cheap_subjects_leave_goes_to_the_dear_ones() -> None:
    counts = sampling.share_rounds({"cheap": 0.001, "dear": 1.0, "hopeless": 100.0}, 10.0)
    assert counts == {"cheap": sampling.MOST_ROUNDS, "dear": sampling.FEWEST_ROUNDS, "hopeless": 1}
    counts = sampling.share_rounds({"cheap": 0.2, "dear": 1.0}, 12.0)
    assert counts == {"cheap": sampling.MOST_ROUNDS, "dear": 8}


def test_a_dear_subject_is_spread_over_all_rounds() -> None:
    time = FakeTime()
    subjects = {"cheap": time.subject("cheap", 0.001), "dear": time.subject("dear", 0.5)}
    samples = sampling.interleave(subjects, budget_seconds=3.0, now=time.now)
    rounds = samples["dear"].rounds
    assert len(rounds) == sampling.FEWEST_ROUNDS
    assert max(rounds) - min(rounds) > sampling.MOST_ROUNDS // 2
    assert set(rounds) <= set(samples["cheap"].rounds)


def test_on_a_machine_that_slows_down_everybody_still_gets_the_fewest_rounds() -> None:
    time = FakeTime(drift=2.0)
    subjects = {"cheap": time.subject("cheap", 0.02), "dear": time.subject("dear", 0.1)}
    plans = {"cheap": SamplingPlan(1, 0.02), "dear": SamplingPlan(1, 0.1)}
    samples = sampling.interleave(subjects, budget_seconds=1.0, plans=plans, now=time.now)
    planned = sampling.share_rounds({"cheap": 0.02, "dear": 0.1}, 1.0)["dear"]
    assert sampling.FEWEST_ROUNDS <= len(samples["dear"].seconds) < planned
    assert len(samples["cheap"].seconds) >= sampling.FEWEST_ROUNDS


def test_a_subject_without_room_for_the_fewest_rounds_has_one() -> None:
    time = FakeTime()
    samples = sampling.interleave({"slow": time.subject("slow", 4.0)}, budget_seconds=1.0, now=time.now)
    assert samples["slow"].seconds == pytest.approx([4.0])


def test_what_is_far_slower_than_the_fastest_has_the_fewest_rounds() -> None:
    counts = sampling.share_rounds({"fast": 0.02, "far": 0.3, "near": 0.1}, 100.0)
    assert counts == {"fast": 20, "far": 3, "near": 20}
    assert sampling.share_rounds({"fast": 1e-5, "far": 1e-3}, 1.0) == {
        "fast": 20,
        "far": 20,
    }  # it costs nothing


def test_a_round_in_which_the_device_was_held_back_is_marked_and_taken_again() -> None:
    monitor = FakeMonitor([False, True, False, True, True])
    time, watch = FakeTime(), sampling.Watch(monitor)
    subjects = {name: time.subject(name, 0.01) for name in "ab"}
    plans = dict.fromkeys(subjects, SamplingPlan(1, 0.01))
    samples = sampling.interleave(
        subjects, budget_seconds=9, plans=plans, most_rounds=5, now=time.now, watch=watch
    )
    assert watch.marks == dict.fromkeys((1, 3, 4), ("power cap",))
    assert samples["a"].rounds == samples["b"].rounds == list(range(8))
    assert monitor.settled == 2 * 8


def test_every_two_have_the_fewest_rounds_in_common_however_late_it_gets() -> None:
    """The plans foretell a tenth of what calls take, and different numbers of rounds."""
    time, costs = FakeTime(), {"a": 0.01, "b": 0.012, "c": 0.03}
    subjects = {name: time.subject(name, 10 * cost) for name, cost in costs.items()}
    plans = {name: SamplingPlan(1, cost) for name, cost in costs.items()}
    found = sampling.interleave(subjects, budget_seconds=0.5, plans=plans, now=time.now)
    assert len(set(sampling.share_rounds(costs, 0.5).values())) > 1
    assert (
        len(set.intersection(*(set(samples.rounds) for samples in found.values()))) >= sampling.FEWEST_ROUNDS
    )


def test_a_short_sample_that_shared_its_core_is_taken_again_at_once() -> None:
    monitor, time = FakeMonitor([], samples=[0.5, 0.5, 0.0, 0.009]), FakeTime()
    watch, subjects = sampling.Watch(monitor), {"a": time.subject("a", 0.01)}
    samples = sampling.interleave(subjects, budget_seconds=9, plans={"a": SamplingPlan(1, 0.01)}, most_rounds=2,
                                now=time.now, watch=watch)  # fmt: skip
    assert monitor.began == len(time.log) == 4
    assert (samples["a"].rounds, watch.disturbed("a"), watch.causes()) == ([0, 1], set(), {})


def test_a_sample_that_shared_its_core_whenever_it_was_tried_is_marked_and_tried_less_often() -> None:
    monitor, time = FakeMonitor([], samples=[0.5] * 99), FakeTime()
    watch = sampling.Watch(monitor)
    subjects = {name: time.subject(name, seconds) for name, seconds in (("short", 0.01), ("long", 0.07))}
    plans = {"short": SamplingPlan(1, 0.01), "long": SamplingPlan(1, 0.07)}
    samples = sampling.interleave(
        subjects, budget_seconds=99, plans=plans, most_rounds=4, now=time.now, watch=watch
    )
    assert (
        time.log.count("long") == len(samples["long"].rounds) == 4
    )  # a long call is not tried again, nor its round
    assert time.log.count("short") == sampling.TRIES + sampling.TRIES // 2 + sampling.TRIES // 4 + 1
    assert watch.disturbed("short") == watch.disturbed("long") == {0, 1, 2, 3}
    assert watch.causes() == {WAITED: 4}


def test_of_samples_that_all_shared_their_core_the_one_counts_that_lost_least() -> None:
    time, lost = FakeTime(), [0.5, 0.3, 0.05, *[0.4] * 7]
    watch, seconds = sampling.Watch(FakeMonitor([], samples=lost)), iter([0.04, 0.03, 0.02, *[0.01] * 7])
    subject = Subject(lambda: time.call("a", next(seconds))(), clocks.HostClock(now=time.now))
    found = sampling.interleave({"a": subject}, budget_seconds=9, plans={"a": SamplingPlan(1, 0.01)}, most_rounds=1,
                                now=time.now, watch=watch)  # fmt: skip
    assert found["a"].seconds == [pytest.approx(0.02)]  # by the waiting, and not the fastest
    assert watch.disturbed("a") == {0}


def test_a_sample_is_marked_for_its_own_subject_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_monitor", lambda device: FakeMonitor([], samples=[0.5]))
    prepare = prepared_from(FakeTime(), {"mine": 0.1, "other": 0.3})
    measured = measurement.measure(
        [cell("mine"), cell("other")], budget_seconds=99.0, most_rounds=4, prepare=prepare
    )
    disturbed = [t.disturbed for t in (*measured.timings, measured.twin) if t is not None]
    assert sorted(disturbed) == [[], [], [0]]


def test_before_a_short_sample_stands_a_call_that_does_not_count() -> None:
    time = FakeTime()
    subjects = {"short": time.subject("short", 0.01), "long": time.subject("long", 0.1)}
    plans = {name: sampling.calibrate(subject) for name, subject in subjects.items()}
    assert (plans["short"].warm, plans["long"].warm) == (True, False)
    assert plans["short"].cost_seconds == pytest.approx(2 * plans["short"].sample_seconds)
    time.log.clear()
    samples = sampling.interleave(subjects, budget_seconds=9, plans=plans, most_rounds=4, now=time.now)
    assert (time.log.count("short"), time.log.count("long")) == (8, 4)
    assert samples["short"].seconds == pytest.approx([0.01] * 4)


def test_rounds_are_not_taken_again_for_ever_nor_beyond_the_budget() -> None:
    for budget, most in ((9.0, 10), (0.11, 6)):
        time, watch = FakeTime(), sampling.Watch(FakeMonitor([True] * 99))
        plans = {"a": SamplingPlan(1, 0.01)}
        samples = sampling.interleave(
            {"a": time.subject("a", 0.02)},
            budget_seconds=budget,
            plans=plans,
            most_rounds=5,
            now=time.now,
            watch=watch,
        )
        assert len(samples["a"].rounds) <= most
        assert len(watch.marks) == len(samples["a"].rounds)


# Measuring a group


def prepared_from(
    time: FakeTime, seconds: dict[str, float], margins: dict[str, float | None] | None = None
) -> Any:
    """A `prepare` whose cells take the given time and have the given margins."""

    def prepare(cell: BenchmarkCase) -> measurement.Prepared:
        name = cell.implementation.name
        clock = clocks.HostClock(now=time.now)
        margin = (margins or {}).get(name, 0.25)
        return measurement.Prepared(
            time.call(name, seconds[name]), clock, Work(100, 10), lambda output: margin
        )

    return prepare


def test_a_group_is_measured_with_its_fastest_cell_standing_twice() -> None:
    time = FakeTime()
    group = [cell("slow"), cell("fast")]
    measured = measurement.measure(
        group, budget_seconds=9.0, prepare=prepared_from(time, {"slow": 0.02, "fast": 0.01})
    )
    slow, fast = measured.timings
    assert (slow.implementation, fast.implementation) == ("slow", "fast")
    assert fast.seconds == pytest.approx([0.01] * sampling.MOST_ROUNDS)
    assert all(t.verified and t.margin == 0.25 and t.flops == 100 and not t.reason for t in measured.timings)
    assert measured.control is not None
    assert measured.control.implementation == "fast"
    assert measured.control.ratio == pytest.approx(1.0)
    assert measured.call_seconds[group[0]] == pytest.approx(0.02)


def test_what_held_the_device_back_is_counted_and_its_rounds_are_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measurement, "_monitor", lambda device: FakeMonitor([True, False, True]))
    measured = measurement.measure(
        [cell("mine")], budget_seconds=9.0, most_rounds=4, prepare=prepared_from(FakeTime(), {"mine": 0.01})
    )
    assert measured.timings[0].disturbed == [0, 2]
    assert measured.twin is not None
    assert measured.twin.disturbed == [0, 2]
    conditions = measured.conditions
    assert conditions is not None
    assert (conditions.rounds, conditions.disturbed) == (6, {"power cap": 2})
    assert (conditions.mhz_low, conditions.mhz_high, conditions.watts, conditions.celsius) == (
        1000.0,
        1002.0,
        300.0,
        None,
    )


def test_only_verified_cells_are_called() -> None:
    time = FakeTime()
    right, wrong = cell("right"), cell("wrong")
    prepare = prepared_from(time, {"right": 0.01, "wrong": 0.01})
    reasons = {right: None, wrong: "breaks rows_sum_to_one"}
    measured = measurement.measure([right, wrong], budget_seconds=9.0, verified=reasons, prepare=prepare)
    assert "wrong" not in time.log
    assert measured.timings[1].seconds == []
    assert measured.timings[1].reason == "breaks rows_sum_to_one"


@pytest.mark.parametrize(
    ("margin", "reason"),
    [(3.0, "3 times its bound away"), (math.inf, "inf times"), (None, "cannot be checked")],
)
def test_a_wrong_output_after_timing_takes_the_times_away(margin: float | None, reason: str) -> None:
    prepare = prepared_from(FakeTime(), {"mine": 0.01}, {"mine": margin})
    timed = measurement.measure([cell()], budget_seconds=9.0, prepare=prepare).timings[0]
    assert (timed.seconds, timed.verified) == ([], False)
    assert reason in timed.reason


def test_a_refusal_and_a_crash_are_reasons_and_the_others_go_on() -> None:
    time = FakeTime()
    fine = prepared_from(time, {"fine": 0.01})

    def prepare(cell: BenchmarkCase) -> measurement.Prepared:
        if cell.implementation.name == "refuses":
            raise UnsupportedCase("head size over 256")
        if cell.implementation.name == "crashes":
            raise MemoryError("out of memory\nand more")
        return fine(cell)  # type: ignore[no-any-return]

    measured = measurement.measure(
        [cell("refuses"), cell("crashes"), cell("fine")], budget_seconds=9.0, prepare=prepare
    )
    reasons = [t.reason for t in measured.timings]
    assert reasons == ["not offered: head size over 256", "raised MemoryError: out of memory", ""]


def test_a_group_may_grow_to_its_limit_for_the_fewest_rounds_and_calls_the_slowest_once_beyond() -> None:
    def timed(limit_seconds: float) -> list[int]:
        seconds = {"fast": 0.1, "slow": 1.0}
        group, prepare = [cell("fast"), cell("slow")], prepared_from(FakeTime(), seconds)
        measured = measurement.measure(
            group, budget_seconds=0.5, limit_seconds=limit_seconds, prepare=prepare
        )
        return [len(t.seconds) for t in measured.timings]

    assert min(timed(limit_seconds=20.0)) == sampling.FEWEST_ROUNDS
    fast, slow = timed(limit_seconds=3.0)
    assert fast >= sampling.FEWEST_ROUNDS
    assert slow == 1


def test_what_is_called_once_is_timed_and_checked_by_that_call() -> None:
    time = FakeTime()
    prepare = prepared_from(time, {"slow": 2.0, "wrong": 2.0}, {"wrong": 7.0})
    measured = measurement.measure(
        [cell("slow"), cell("wrong")], budget_seconds=1.0, prepare=prepare, once=True, stop_seconds=9.0
    )
    slow, wrong = measured.timings
    assert (slow.seconds, slow.rounds, slow.margin) == (pytest.approx([2.0]), [statistics.ALONE], 0.25)
    assert (wrong.seconds, wrong.margin) == ([], 7.0)
    assert time.log == ["slow", "wrong"]
    assert measured.twin is None


def test_a_call_that_fails_later_takes_its_times_away_and_no_others() -> None:
    time, calls = FakeTime(), iter(range(12))
    fine = prepared_from(time, {"fine": 0.01, "tires": 0.01})

    def prepare(cell: BenchmarkCase) -> measurement.Prepared:
        def tires() -> str:
            time.call("tires", 0.01)()
            if next(calls) > 10:
                raise RuntimeError("out of handles")
            return ""

        ready: measurement.Prepared = fine(cell)
        return dataclasses.replace(ready, call=tires) if cell.implementation.name == "tires" else ready

    measured = measurement.measure([cell("tires"), cell("fine")], budget_seconds=9.0, prepare=prepare)
    assert [t.reason for t in measured.timings] == ["raised RuntimeError: out of handles", ""]
    assert [len(t.seconds) for t in measured.timings] == [0, sampling.MOST_ROUNDS]


def test_a_cell_that_is_expected_to_be_too_slow_is_not_called() -> None:
    time, slow = FakeTime(), cell("slow")
    prepare = prepared_from(time, {"slow": 4.0})
    measured = measurement.measure([slow], budget_seconds=1.0, expected_seconds={slow: 4.0}, prepare=prepare)
    assert time.log == []
    assert "no room for a call of about 4 s" in measured.timings[0].reason


# Cells and reasons


def test_memory_is_shown_in_the_first_dtype_that_is_there() -> None:
    in_any, in_double = implementation(), implementation(dtypes=("float64",))
    halves = [cell(implementation=in_any, dtype=dtype) for dtype in ("float16", "bfloat16")]
    both = cell(implementation=in_any, dtype="bfloat16", direction="forward+backward")
    double = cell(implementation=in_double, dtype="float64")
    assert grid.showing_growth([*halves, both, double]) == {halves[1], double}
    single = cell(implementation=in_any, dtype="float32")
    assert grid.showing_growth([*halves, single]) == {single}


def test_what_is_not_offered_or_not_here_is_a_reason() -> None:
    assert benchmark_cases.why_not_run(cell()) is None
    assert benchmark_cases.why_not_run(cell(direction="forward+backward")) == "not offered: gradients"
    windowed = dataclasses.replace(SHORT, window=(3, 0))
    assert benchmark_cases.why_not_run(cell(workload=windowed)) == "not offered: window"
    small = implementation(requires=("D <= 4",))
    assert benchmark_cases.why_not_run(cell(implementation=small)) == "not offered: requires D <= 4"
    gone = implementation(available=lambda device: "no such unit")
    assert benchmark_cases.why_not_run(cell(implementation=gone)) == "no such unit"


def test_an_interpreted_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("kernels")
    module.triton = object()  # type: ignore[attr-defined]  # as `import triton` leaves it
    monkeypatch.setitem(sys.modules, "kernels", module)

    def flash(query: Any, key: Any, value: Any, *, causal: bool = False) -> None:
        raise AssertionError("called")

    flash.__module__ = "kernels"
    reason = benchmark_cases.why_not_run(cell(implementation=implementation("flash", flash)))
    assert reason is not None
    assert "interpreter" in reason


def test_cells_are_listed_by_importance_and_grouped() -> None:
    ones = [implementation("a", dtypes=("float64", "float32")), implementation("b")]
    cells = benchmark_cases.cells_of(ones, workloads=lambda device: [SHORT])
    assert [(c.dtype, c.direction, c.implementation.name) for c in cells][:3] == [
        ("float32", "forward", "a"),
        ("float32", "forward", "b"),
        ("float32", "forward+backward", "a"),
    ]
    assert [len(group) for group in benchmark_cases.groups_of(cells)] == [2, 2, 1, 1]
    assert {c.device for c in cells} == {"cpu"}
    assert set(benchmark_cases.IMPORTANCE) == set(DTYPES)


# The check after timing


@pytest.mark.parametrize("key_lengths", [None, (24, 5)])
@pytest.mark.parametrize("causal", [True, False])
def test_sampled_rows_of_a_right_output_lie_within_the_bound(causal: bool, key_lengths: Any) -> None:
    workload = dataclasses.replace(SHORT, causal=causal, key_lengths=key_lengths)
    run, problem = Run(implementation()), workload.problem("float32")
    output = run.callable(problem)()
    margin = sampled_rows.margin_of(run, problem, output, "forward")
    assert margin is not None
    assert 0 < margin < 1
    wrong = output.copy()
    wrong[0, 1, -1, 3] += 1e-3 * abs(wrong).max()
    of_wrong = sampled_rows.margin_of(run, problem, wrong, "forward")
    assert of_wrong is not None
    assert of_wrong > 1


@pytest.mark.parametrize("spoiled", ["query", "key", "value"])
def test_sampled_gradients_lie_within_the_bound_and_spoiled_ones_do_not(spoiled: str) -> None:
    torch = pytest.importorskip("torch", reason="gradients of a framework need one")

    def sdpa(query: Any, key: Any, value: Any, *, causal: bool = False) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)

    workload = dataclasses.replace(SHORT, kv_heads=None, batch=1, heads=1)
    run = Run(describe(sdpa, name="sdpa", arrays="torch", dtypes=("float32",)))
    problem = workload.problem("float32")
    output, grads = run.callable(problem, "forward+backward")()
    margin = sampled_rows.margin_of(run, problem, (output, grads), "forward+backward")
    assert margin is not None
    assert 0 < margin < 1
    grads[spoiled][0, 0, -1] *= 1.01
    of_spoiled = sampled_rows.margin_of(run, problem, (output, grads), "forward+backward")
    assert of_spoiled is not None
    assert of_spoiled > 1


def test_a_nan_where_a_number_belongs_is_infinitely_wrong() -> None:
    run, problem = Run(implementation()), SHORT.problem("float32")
    output = np.full_like(run.callable(problem)(), np.nan)
    assert sampled_rows.margin_of(run, problem, output, "forward") == math.inf


# Ceilings and memory


def test_ceilings_come_from_the_best_sample() -> None:
    measured = list(ceilings.measure_ceilings([("cpu", "float32"), ("cpu", "float32")], seconds=0.02))
    assert [(c.what, c.dtype) for c in measured] == [("copy", "float32"), ("matmul", "float32")]
    assert all(c.rate > 0 and len(c.seconds) >= 3 for c in measured)
    copy = measured[0]
    assert copy.rate == pytest.approx(2 * ceilings.COPY_BYTES["cpu"] / min(copy.seconds))


def test_the_roofline_is_the_tighter_of_arithmetic_and_traffic() -> None:
    measured = [Ceiling("cpu", "float32", "matmul", 100.0), Ceiling("cpu", "float32", "copy", 10.0)]
    assert ceilings.roofline_seconds(200, 10, "float32", "cpu", measured) == 2.0
    assert ceilings.roofline_seconds(200, 50, "float32", "cpu", measured) == 5.0
    assert ceilings.roofline_seconds(200, 10, "float64", "cpu", measured) is None
    halves = [*measured, Ceiling("cpu", "bfloat16", "matmul", 20.0)]
    assert ceilings.roofline_seconds(200, 10, "bfloat16", "cpu", halves) == 2.0


def test_a_ceiling_that_a_call_exceeds_gives_no_share() -> None:
    """It was measured on a busy machine, or the operands came from caches: "673 % of roofline" says nothing."""
    timing = Timing(
        case="c", sizes={}, causal=False, options="", implementation="one", device="cpu", dtype="float32",
        direction="forward", clock="host", seconds=[1.0], rounds=[0], flops=100, bytes=10,
    )  # fmt: skip
    products = Ceiling("cpu", "float32", "matmul", 100.0)
    slow_copy = Ceiling("cpu", "float32", "copy", 1.0)
    assert ceilings.fraction_of_roofline(timing, 2.0, [products]) == 0.5
    assert ceilings.fraction_of_roofline(timing, 0.5, [products]) is None
    assert ceilings.exceeds_products(timing, 0.5, [products])
    assert ceilings.fraction_of_roofline(timing, 1.0, [products, slow_copy]) is None
    assert not ceilings.exceeds_products(timing, 1.0, [products, slow_copy])


def test_products_that_a_call_exceeds_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64's were measured beside other work, float32's were not: the time is possible, the share was not."""
    timing = Timing(
        case="c", sizes={}, causal=False, options="", implementation="one", device="cpu", dtype="float64",
        direction="forward", clock="host", seconds=[1.0], rounds=[0], flops=100, bytes=10,
    )  # fmt: skip
    known = [Ceiling("cpu", "float64", "matmul", 20.0), Ceiling("cpu", "float32", "matmul", 400.0)]
    monkeypatch.setattr(
        grid, "single_thread_ceilings", lambda dtype: [Ceiling("cpu", dtype, "matmul", 200.0)]
    )
    assert grid.believed(timing, known).seconds == [1.0]
    assert ceilings.fraction_of_roofline(timing, 1.0, grid.highest(known)) == 0.5


def test_peak_memory_is_that_of_the_score_matrix() -> None:
    long = dataclasses.replace(SHORT, batch=1, heads=4, queries=1024, kv_heads=None)
    measured = implementation("peak")
    with memory.Server() as server:
        peak = server.peak_bytes(measured, long, "cpu", "float32", "forward")
        again = server.peak_bytes(measured, long, "cpu", "float32", "forward")
        refused = server.peak_bytes(measured, long, "cpu", "float32", "forward+backward")
    scores = 4 * 1024 * 1024 * 4
    assert peak is not None
    assert again is not None
    assert 2 * scores < peak < 8 * scores
    assert abs(peak - again) < scores / 4
    assert refused is None


# The whole grid


def test_a_grid_is_written_as_it_goes_and_within_its_budget(tmp_path: Path) -> None:
    said: list[tuple[float, str]] = []

    def thrice(
        query: Any, key: Any, value: Any, *, causal: bool = False
    ) -> Any:  # slower: the fastest stands twice
        return sum(attention(query, key, value, causal=causal) for _ in range(3))

    wrong = implementation("wrong", thrice)
    verdicts = [
        Verdict("one_hot_lookup", "attention", "A sentence.", False, name, "cpu", "float32", "passed")
        for name in ("mine", "wrong")
    ]
    with results.Writer(tmp_path / "results.jsonl") as writer:
        timings = grid.run_grid(
            writer,
            [implementation(), wrong],
            budget_seconds=10.0,
            progress=lambda fraction, text: said.append((fraction, text)),
            verdicts=verdicts,
            workloads=lambda device: [SHORT],
        )
    records = results.read(tmp_path / "results.jsonl")
    assert results.of_kind(records, Timing) == timings
    assert [c.what for c in results.of_kind(records, Ceiling)] == ["copy", "matmul"]
    assert [c.implementation for c in results.of_kind(records, Control)] == ["mine"]
    reasons = {(t.implementation, t.direction): t.reason for t in timings}
    assert reasons["mine", "forward"] == ""
    assert "times its bound away" in reasons["wrong", "forward"]
    assert reasons["mine", "forward+backward"] == "not offered: gradients"
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions)
    assert said[-1] == (1.0, "done")


def test_when_time_is_up_the_rest_is_written_without_times(tmp_path: Path) -> None:
    with results.Writer(tmp_path / "results.jsonl") as writer:
        timings = grid.run_grid(
            writer,
            [implementation()],
            budget_seconds=1e-9,
            workloads=lambda device: [SHORT],
            directions=["forward"],
        )
    assert [t.reason for t in timings] == [grid.OUT_OF_TIME]


def test_longer_cases_are_foretold_by_shorter_ones() -> None:
    speeds, short = grid.Speeds(), cell()
    twice = dataclasses.replace(short, workload=dataclasses.replace(SHORT, queries=48))
    speeds.learn({short: 0.1})
    assert speeds.expected([twice]) == {twice: pytest.approx(0.2)}
    assert speeds.expected([dataclasses.replace(twice, dtype="float64")]) == {}


# Directions


@pytest.mark.parametrize("name", ["torch_eager", "torch_tiled"])
def test_a_backward_pass_by_itself_can_be_repeated_and_is_the_gradient(name: str) -> None:
    pytest.importorskip("torch", reason="torch is optional")
    implementation = registry.find(name)[0]
    tiny = Workload(name="w", source="made up", heads=2, key_size=8, queries=16)
    here = BenchmarkCase(tiny, implementation, "cpu", "float32", "backward")
    ready = measurement.prepared(here)
    first, again = ready.call()[1], ready.call()[1]
    both = measurement.prepared(dataclasses.replace(here, direction="forward+backward")).call()[1]
    for gradient in ("query", "key", "value"):
        assert first[gradient].equal(again[gradient])
        assert first[gradient].equal(both[gradient])
    margin, said = measurement.checked(ready)
    assert said == ""
    assert margin is not None
    assert 0 < margin < 1


def test_a_backward_pass_does_no_forward_work() -> None:
    problem = Workload(name="w", source="made up", heads=2, key_size=8, value_size=4, queries=16).problem(
        "float32"
    )
    forward, backward, both = (work(problem, d) for d in ("forward", "backward", "forward+backward"))
    assert forward.flops + backward.flops == both.flops
    assert backward.flops == forward.flops * (6 * 8 + 4 * 4) // (2 * (8 + 4))
    assert backward.bytes == both.bytes


def test_a_gradient_function_that_makes_both_passes_is_not_timed_as_backward() -> None:
    implementation = registry.find("numpy_textbook")[0]
    here = BenchmarkCase(
        Workload(name="w", source="made up", heads=2, key_size=8, queries=16),
        implementation,
        "cpu",
        "float32",
        "backward",
    )
    (timed,) = measurement.measure([here], budget_seconds=1.0).timings
    assert timed.reason == "not offered: its gradient function makes both passes: time forward+backward"
