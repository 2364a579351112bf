"""Taking samples fairly: interleaved, in random order, warm, each long enough for its clock.

A machine drifts: other processes come and go, clocks rise and fall. Timing one subject after the other books
that drift to whoever was running. Here every round runs each subject once, in an order drawn anew, so that
drift falls on all of them alike and pairs of times from one round can be compared. The seed of the order is
given, so a run can be repeated.

How a budget is spent: a subject costs what its warm-up says. Cheap subjects get all rounds; what they leave
is shared among the dear ones, whose rounds are spread evenly over the run. What takes more than `FAR` times as
long as the fastest gets `FEWEST_ROUNDS`, for more would decide nothing; what cannot have these within the budget
is timed once.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from qkverify.errors import raised
from qkverify.timing.clocks import Call, Clock
from qkverify.timing.nvml import DISTURBING_SHARE, WAITED, DeviceReading, Monitor

MOST_ROUNDS = 20
SHORT_SECONDS = 0.05  # a longer call is warm for most of its time
KEPT = 3  # samples of a subject whose results are looked at
TRIES = 10  # of a short sample, until none of its threads had to wait for a core
FEWEST_ROUNDS = 3
FAR = 8.0  # so many times slower than the fastest: the fewest rounds tell that
NO_TIME = "the time budget"  # so begins why a cell was not timed that could have been
OUT_OF_TIME = f"{NO_TIME} had run out"
PAUSE_SECONDS = 0.001  # about what reading the scheduler's counters takes, before and after a sample
RESOLUTION_MULTIPLE = 10_000  # a sample so many clock steps long is quantised by at most 0.01 %
MOST_REPEATS = 10_000
STEADY = 0.1  # warm-up ends when two samples in a row agree within 10 %
MOST_WARM_UPS = 5
WARM_UP_SECONDS = 0.2


@dataclass(frozen=True)
class Subject:
    """Something to time: a call without arguments, the clock that suits it, and what comes before so many calls.

    `keep` is given the results of some samples, right after them.
    """

    call: Call
    clock: Clock
    renew: Callable[[int], None] = lambda calls: None
    keep: Callable[[Any], None] | None = None


@dataclass
class Samples:
    """`seconds[i]` is the time of one call in round `rounds[i]`. Without seconds, `reason` says why."""

    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    reason: str = ""

    def add(self, seconds: float, round_number: int) -> None:
        self.seconds.append(seconds)
        self.rounds.append(round_number)


class Watch:
    """Which rounds and which samples were held back by what, and the device's state over all rounds; blind without a monitor.

    `marks` are causes by the round, `waiting` rounds by the subject whose sample was not its own alone.
    """

    def __init__(self, monitor: Monitor | None = None) -> None:
        self._monitor = monitor
        self.marks: dict[int, tuple[str, ...]] = {}
        self.waiting: dict[str, set[int]] = {}
        self.readings: list[DeviceReading] = []

    def disturbed(self, name: str) -> set[int]:
        """The rounds in which a subject's sample does not count."""
        return self.waiting.get(name, set()) | set(self.marks)

    def causes(self) -> dict[str, int]:
        """How many rounds each cause disturbed."""
        counted = Counter(cause for causes in self.marks.values() for cause in causes)
        counted[WAITED] += len(set().union(*self.waiting.values()))
        return dict(+counted)

    def before(self) -> None:
        if self._monitor is not None:
            self._monitor.before()

    @property
    def pause_seconds(self) -> float:
        """About what passes between two samples."""
        return 0.0 if self._monitor is None else PAUSE_SECONDS

    def settle(self) -> None:
        """Before each sample: what the one before left running comes to rest."""
        if self._monitor is not None:
            self._monitor.settle()

    def begin_sample(self) -> None:
        if self._monitor is not None:
            self._monitor.begin_sample()

    def share_lost(self, seconds: float) -> float:
        """How much of the sample of so many seconds that ends here was others'."""
        return 0.0 if self._monitor is None else self._monitor.share_lost(seconds)

    def after(self, round_number: int) -> bool:
        """Whether the round that ends here was held back."""
        if self._monitor is None:
            return False
        reading = self._monitor.after()
        self.readings.append(reading)
        if reading.throttled:
            self.marks[round_number] = reading.throttled
        return bool(reading.throttled)


class SamplingPlan(NamedTuple):
    """How a subject is sampled: calls in a sample, the seconds that they take, and whether
    a call that does not count goes before.

    The subjects of the round before left the caches full of their own numbers, and threads asleep. What that costs a short call
    is no property of it, and scatters.
    """

    repeats: int
    sample_seconds: float
    warm: bool = False

    @property
    def call_seconds(self) -> float:
        return self.sample_seconds / self.repeats

    @property
    def cost_seconds(self) -> float:
        """What a sample takes with the call that does not count."""
        return self.sample_seconds + self.call_seconds * self.warm


def _chosen(count: int) -> set[int]:
    """Which of so many samples are looked at: by chance that no seed gives."""
    return set(random.SystemRandom().sample(range(count), min(KEPT, count)))


class _Held:
    """A call that holds on to its last result, and frees it before the next, as the clock does."""

    def __init__(self, call: Call) -> None:
        self._call, self.result = call, None

    def __call__(self) -> Any:
        self.result = None
        self.result = self._call()
        return self.result


def interleave(
    subjects: Mapping[str, Subject],
    *,
    budget_seconds: float,
    seed: int = 0,
    plans: Mapping[str, SamplingPlan] | None = None,
    most_rounds: int = MOST_ROUNDS,
    now: Callable[[], float] = time.perf_counter,
    watch: Watch | None = None,
) -> dict[str, Samples]:
    """Samples of every subject, by its name. `plans` are calibrated here where they are not given.

    The budget is what the rounds may take, warm-up included; after it only subjects that have not had their fewest
    rounds go on. A short sample that had to share its core is taken again at once. `watch` marks what was held back all
    the same; where the budget still allows, as many rounds are taken more.
    """
    start = now()
    plans = plans or {
        name: calibrate(subject, limit_seconds=budget_seconds) for name, subject in subjects.items()
    }
    left = max(0.0, budget_seconds - (now() - start))
    watch = watch if watch is not None else Watch()
    costs = {name: plan.cost_seconds + watch.pause_seconds for name, plan in plans.items()}
    counts = share_rounds(costs, left, most_rounds)
    samples = {name: Samples() for name in subjects}
    order, last = np.random.default_rng(seed), max(counts.values(), default=0)
    throttled, shared = list[list[str]](), list[list[str]]()
    kept = {name: _chosen(count) for name, count in counts.items()}
    tries = {name: TRIES if plan.sample_seconds < SHORT_SECONDS else 1 for name, plan in plans.items()}

    def one_sample(name: str, number: int) -> bool:
        """Whether the sample of this round was held back, after short ones were taken again while the budget lasted. Of several
        the one that lost least to others counts."""
        subject, plan, lost, best = subjects[name], plans[name], math.inf, 0.0
        held = _Held(subject.call) if subject.keep and len(samples[name].rounds) in kept[name] else None
        for _ in range(tries[name]):
            subject.renew(plan.repeats + plan.warm)
            watch.settle()
            if plan.warm:
                subject.call()
            watch.begin_sample()
            seconds = subject.clock.sample(held or subject.call, plan.repeats)
            share = watch.share_lost(seconds * plan.repeats)
            lost, best = min((lost, best), (share, seconds))
            if lost <= DISTURBING_SHARE or now() - start > budget_seconds:
                break
        if held is not None and subject.keep is not None:
            subject.keep(held.result)
        samples[name].add(best, number)
        held_back = lost > DISTURBING_SHARE
        if held_back:
            tries[name] = max(
                1, tries[name] // 2
            )  # where that never helps the time is better spent on more rounds
            watch.waiting.setdefault(name, set()).add(number)
        return held_back

    def one_round(number: int, names: Sequence[str]) -> None:
        held_back = list[str]()
        watch.before()
        for name in order.permutation(names):
            try:
                held_back += [name] * one_sample(name, number)
            except Exception as error:  # a call that worked before: the others go on
                samples[name] = Samples(reason=raised(error))
        if watch.after(number):
            throttled.append(list(names))
        elif held_back:
            shared.append(list(names))  # all of them: a pair needs both

    places = _by_turns(last) if last else {}
    for number in range(last):
        names = [
            name for name, count in counts.items() if places[number] < count and not samples[name].reason
        ]
        if (
            now() - start > budget_seconds
        ):  # only for who has not had the fewest, and what is no dearer beside them
            needy = [plans[name].cost_seconds for name in names if len(samples[name].rounds) < FEWEST_ROUNDS]
            names = [name for name in names if needy and plans[name].cost_seconds <= max(needy)]
        if names:
            one_round(number, names)
    # A round that was held back is taken again, once; where most of them had to share a core, another one would as well.
    again = throttled + (shared if len(shared) <= last / 2 else [])
    for number, names in enumerate(again[:last], start=last):
        if now() - start > budget_seconds:
            break
        one_round(number, [name for name in names if not samples[name].reason])
    return samples


def calibrate(subject: Subject, *, limit_seconds: float = math.inf) -> SamplingPlan:
    """Warm up until two samples in a row agree, and choose the repeats that the clock's resolution asks for.

    Long calls are taken as they are after two. It ends as soon as `FEWEST_ROUNDS` samples would not fit the
    limit: nothing more needs to be known then.
    """
    shortest = subject.clock.resolution_seconds() * RESOLUTION_MULTIPLE
    repeats, before, spent = 1, math.inf, 0.0
    for _ in range(MOST_WARM_UPS):
        subject.renew(repeats)
        seconds = subject.clock.sample(subject.call, repeats)
        spent += seconds * repeats
        settled = abs(seconds - before) <= STEADY * seconds or (before < math.inf and spent > WARM_UP_SECONDS)
        if (settled and seconds * repeats >= shortest) or seconds * repeats * FEWEST_ROUNDS > limit_seconds:
            break
        before = seconds
        repeats = _repeats(seconds, shortest)
    return SamplingPlan(repeats, seconds * repeats, warm=seconds < SHORT_SECONDS)


def planned(clock: Clock, call_seconds: float) -> SamplingPlan:
    """The plan for a call of which another process saw how long it takes."""
    repeats = _repeats(call_seconds, clock.resolution_seconds() * RESOLUTION_MULTIPLE)
    return SamplingPlan(repeats, call_seconds * repeats, warm=call_seconds < SHORT_SECONDS)


def _repeats(call_seconds: float, shortest: float) -> int:
    """Calls in a sample of at least `shortest` seconds."""
    return max(1, min(MOST_REPEATS, math.ceil(shortest / max(call_seconds, shortest / MOST_REPEATS))))


def share_rounds(
    costs: Mapping[str, float], budget_seconds: float, most_rounds: int = MOST_ROUNDS
) -> dict[str, int]:
    """Rounds for each subject, 1 for the dearest where not even `FEWEST_ROUNDS` of all fit the budget.

    Beyond the fewest, the rest is shared equally, and what the cheap ones leave goes to the dear ones.
    """
    cheapest_first = sorted(costs, key=lambda name: costs[name])
    while cheapest_first and FEWEST_ROUNDS * sum(costs[n] for n in cheapest_first) > budget_seconds:
        cheapest_first.pop()
    counts = dict.fromkeys(costs, 1)
    left = budget_seconds - FEWEST_ROUNDS * sum(costs[n] for n in cheapest_first)
    for index, name in enumerate(cheapest_first):
        share = left / (len(cheapest_first) - index)
        more = most_rounds - FEWEST_ROUNDS
        if costs[name] > max(SHORT_SECONDS, FAR * costs[cheapest_first[0]]):
            more = min(more, 0)
        if costs[name] * more > share:
            more = int(share / costs[name])
        counts[name] = FEWEST_ROUNDS + more
        left -= more * costs[name]
    return counts


def _by_turns(last: int) -> dict[int, int]:
    """The place of each of `last` rounds in an order that is spread evenly wherever it ends: first, last, middle, quarters, ...

    A subject of n rounds runs in the first n of that order, so that every two have the fewer of theirs in common.
    """
    bits = max(1, (last - 1).bit_length())
    halves = [int(f"{i:0{bits}b}"[::-1], 2) * last >> bits for i in range(2**bits)]
    return {number: place for place, number in enumerate(dict.fromkeys([0, last - 1, *halves]))}


def too_slow(call_seconds: float) -> str:
    """The reason of a subject for which the budget has no room."""
    return f"{NO_TIME} had no room for a call of about {call_seconds:.2g} s"
