"""The words for differences: right on planted ones, silent on none, the same on every machine."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from qkverify.results import Control, Timing
from qkverify.timing import statistics
from qkverify.timing.statistics import Interval, compare, noise, paired_ratio, verdict

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
    first, second = (drift * np.exp(numbers.normal(0, 0.01, rounds)) for _ in range(2))
    return (factor * first).tolist(), second.tolist()


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
    comparison = compare(timing([2.0, 4.0, 6.0], [0, 2, 4]), timing([1.0, 99.0, 2.0, 99.0, 3.0]))
    assert comparison.interval == pytest.approx((2.0, 2.0, 2.0))
    assert (comparison.rounds, comparison.word) == (3, "slower")


def test_too_few_rounds_decide_nothing() -> None:
    comparison = compare(timing([2.0, 4.0]), timing([1.0, 2.0]))
    assert comparison.word == "undecided"
    assert comparison.interval.ratio == pytest.approx(2.0)


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


def processes_of(
    seed: int, count: int, rounds: int = 20, differ: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Log-ratios of equal code in several processes that differ by themselves, rounds heavy-tailed; and their process."""
    numbers = np.random.default_rng(seed)
    logs = 0.01 * numbers.standard_t(2, (count, rounds)) + differ * numbers.standard_normal((count, 1))
    return logs.ravel(), np.repeat(np.arange(count), rounds)


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("differ", [0.0, 0.003, 0.01])
def test_the_interval_over_processes_holds_the_truth_as_often_as_it_says(count: int, differ: float) -> None:
    """95 % of 400: below 363 or above 395 a true 95 % has odds under 1 in 10,000."""
    held = 0
    for seed in range(400):
        logs, processes = processes_of(seed, count, differ=differ)
        interval = paired_ratio(np.exp(logs).tolist(), np.ones(logs.size).tolist(), processes.tolist())
        held += interval.low <= 1.0 <= interval.high
    assert 363 <= held <= 395


def test_rounds_of_one_process_know_nothing_of_how_processes_differ() -> None:
    """Why there are several: the interval of all rounds, their process forgotten, holds the truth half as often as it says."""
    held = 0
    for seed in range(200):
        logs, _ = processes_of(seed, 3)
        interval = paired_ratio(np.exp(logs).tolist(), np.ones(logs.size).tolist())
        held += interval.low <= 1.0 <= interval.high
    assert held < 150


def test_student_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is optional")
    assert [stats.t.ppf(0.975, n + 1) for n in range(len(statistics.STUDENT))] == pytest.approx(
        statistics.STUDENT, abs=6e-4
    )
    logs = np.random.default_rng(1).normal(0.1, 0.02, 6)
    theirs = stats.t.interval(0.95, 5, logs.mean(), stats.sem(logs))
    interval = statistics.student(logs.tolist())
    assert [math.log(interval.low), math.log(interval.high)] == pytest.approx(theirs, rel=1e-3)


def test_two_runs_are_told_apart_by_their_processes() -> None:
    old, new = [0.0, 0.01, -0.01], [0.10, 0.11, 0.12]
    interval = statistics.unpaired_ratio(new, old)
    assert interval.ratio == pytest.approx(math.exp(0.11))
    assert 1.05 < interval.low < interval.ratio < interval.high < 1.2
    assert statistics.unpaired_ratio(new, old[:1]).high == math.inf
    assert math.isnan(statistics.unpaired_ratio([], old).ratio)


def test_a_case_that_lacks_a_control_is_not_judged_where_others_have_one() -> None:
    pair = timing([2.0, 2.0, 2.0]), timing([1.0, 1.0, 1.0])
    assert compare(*pair).word == "slower"
    assert compare(*pair, [control(1.0, 0.999, 1.001)]).word == "slower"
    elsewhere = Control("another", "mine", "cpu", "float32", 1.0, 0.999, 1.001)
    assert compare(*pair, [elsewhere]).word == "undecided"


def test_disturbed_rounds_do_not_count_while_enough_are_left() -> None:
    def marked(seconds: list[float], disturbed: list[int]) -> Timing:
        return msgspec.structs.replace(timing(seconds), disturbed=disturbed)

    mine, other = marked([2.0, 2.0, 2.0, 9.0], [3]), marked([1.0] * 4, [])
    assert statistics.drop_disturbed_rounds(mine) == [2.0] * 3
    assert compare(mine, other).rounds == 3
    assert compare(other, mine).rounds == 3
    few = marked([2.0, 2.0, 9.0, 9.0], [2, 3])
    assert statistics.drop_disturbed_rounds(few) == few.seconds
    assert compare(few, other).rounds == 4


def test_each_process_has_its_own_rounds_left() -> None:
    both = msgspec.structs.replace(timing([1.0] * 8), processes=[0] * 4 + [1] * 4, disturbed=[0, 4, 5])
    _, _, processes = statistics.paired(both, both)
    assert processes == [0] * 3 + [1] * 4


def test_medians_and_means() -> None:
    assert statistics.median([3.0, 1.0, 2.0]) == 2.0
    assert statistics.spread([1.0, 2.0, 3.0]) == 0.5
    assert statistics.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert math.isnan(statistics.median([]))
