"""The words for differences: right on planted ones, silent on none, the same on every machine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qkverify import statistics
from qkverify.results import Control, Timing
from qkverify.statistics import Interval, compare, noise, paired_ratio, verdict

RUNS = 40


def control(ratio: float, low: float, high: float) -> Control:
    return Control("case", "mine", "cpu", "float32", ratio, low, high)


def timing(seconds: list[float], rounds: list[int] | None = None) -> Timing:
    return Timing(
        case="case",
        sizes={},
        causal=True,
        options="",
        implementation="mine",
        device="cpu",
        dtype="float32",
        direction="forward",
        clock="host",
        seconds=seconds,
        rounds=list(range(len(seconds))) if rounds is None else rounds,
        flops=1,
        bytes=1,
    )


def drifting(seed: int, factor: float, rounds: int = 20) -> tuple[list[float], list[float]]:
    """Two interleaved series on a noisy machine: it drifts by 20 % for both, and jitters by 1 % for each."""
    numbers = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(numbers.normal(0, 0.05, rounds)))
    one, other = (drift * np.exp(numbers.normal(0, 0.01, rounds)) for _ in range(2))
    return (factor * one).tolist(), other.tolist()


def word(seed: int, factor: float) -> str:
    """The verdict on a planted factor, the band taken from an A/A control of the same kind."""
    same = paired_ratio(*drifting(seed + 10_000, 1.0))
    return verdict(paired_ratio(*drifting(seed, factor)), noise([control(*same)]))


def test_no_difference_is_never_called_one() -> None:
    assert {word(seed, 1.0) for seed in range(RUNS)} <= {"same", "undecided"}


def test_five_per_cent_are_seen_through_a_drift_of_twenty() -> None:
    words = [word(seed, 1.05) for seed in range(RUNS)]
    assert words.count("slower") >= RUNS * 19 // 20
    assert "faster" not in words


def test_faster_is_the_mirror_of_slower() -> None:
    mine, other = drifting(3, 1.05)
    there, back = paired_ratio(mine, other), paired_ratio(other, mine)
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert verdict(there) == "slower"
    assert verdict(back) == "faster"


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(1.10, 1.05, 1.20), "slower"),
        (Interval(0.90, 0.85, 0.95), "faster"),
        (Interval(1.001, 0.995, 1.008), "same"),
        (Interval(1.02, 0.99, 1.05), "undecided"),
        (Interval(1.015, 1.005, 1.03), "undecided"),
        (Interval(1.1, 0.0, math.inf), "undecided"),
    ],
)
def test_the_word_for_an_interval(interval: Interval, expected: str) -> None:
    assert verdict(interval) == expected


def test_a_noisy_control_silences_what_lies_within_its_reach() -> None:
    interval = Interval(1.03, 1.02, 1.04)
    assert verdict(interval) == "slower"
    assert verdict(interval, noise([control(1.02, 0.99, 1.05)])) == "undecided"


def test_the_band_is_one_per_cent_at_least_and_endless_without_enough_rounds() -> None:
    assert noise([]) == pytest.approx(math.log(1.01))
    assert noise([control(1.0, 0.0, math.inf)]) == math.inf


def test_a_machine_is_quiet_when_every_control_lies_within_one_per_cent() -> None:
    assert statistics.is_quiet([control(1.005, 0.9, 1.1), control(0.995, 0.9, 1.1)])
    assert not statistics.is_quiet([control(1.005, 0.9, 1.1), control(1.02, 1.0, 1.1)])


def test_only_rounds_that_both_ran_in_are_paired() -> None:
    found = compare(timing([2.0, 4.0, 6.0], [0, 2, 4]), timing([1.0, 99.0, 2.0, 99.0, 3.0]))
    assert found.interval == pytest.approx((2.0, 2.0, 2.0))
    assert (found.rounds, found.word) == (3, "slower")


def test_too_few_rounds_decide_nothing() -> None:
    found = compare(timing([2.0, 4.0]), timing([1.0, 2.0]))
    assert found.word == "undecided"
    assert found.interval.ratio == pytest.approx(2.0)


def test_nothing_in_common_decides_nothing() -> None:
    assert compare(timing([2.0], [0]), timing([1.0], [1])).word == "undecided"


def test_the_interval_agrees_with_scipy_and_is_repeatable() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is optional")
    mine, other = drifting(5, 1.1, rounds=30)
    ours = paired_ratio(mine, other)
    logs = np.log(np.array(mine) / np.array(other))
    theirs = stats.bootstrap(
        (logs,), np.median, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    assert paired_ratio(mine, other) == ours
    width = theirs.high - theirs.low
    assert abs(math.log(ours.low) - theirs.low) < width / 4
    assert abs(math.log(ours.high) - theirs.high) < width / 4


def test_medians_and_means() -> None:
    assert statistics.median([3.0, 1.0, 2.0]) == 2.0
    assert statistics.spread([1.0, 2.0, 3.0]) == 0.5
    assert statistics.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert math.isnan(statistics.median([]))
