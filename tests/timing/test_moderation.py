"""What all cases of a run say of the scatter of each: estimated as it was drawn, and intervals that hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qkverify.results import Control, Scatter, Timing
from qkverify.timing import moderation, statistics
from qkverify.timing.moderation import Seen, learnt, moderated


def drawn(seed: int, cases: int, processes: int, luck: float, alike: float = math.inf) -> list[Seen]:
    """Cases whose processes have this luck and rounds of their own; variances differ as those of `alike` degrees do."""
    numbers = np.random.default_rng(seed)
    comparisons = []
    for of_rounds in np.exp(numbers.normal(math.log(1e-5), 0.5, cases)):
        factor = 1.0 if alike == math.inf else alike / numbers.chisquare(alike)
        medians = numbers.normal(0, math.sqrt(factor * (luck**2 + of_rounds)), processes)
        comparisons.append(Seen(float(np.var(medians, ddof=1)), processes - 1, float(of_rounds)))
    return comparisons


@pytest.mark.parametrize("luck", [0.0, 0.02])
def test_what_was_drawn_is_learnt(luck: float) -> None:
    scatters = [scatter for seed in range(20) if (scatter := learnt(drawn(seed, 60, 3, luck))) is not None]
    expected = [scatter.factor * (scatter.luck**2 + 1e-5) for scatter in scatters]
    assert np.median(expected) == pytest.approx(luck**2 + 1e-5, rel=0.25)
    assert np.median([scatter.degrees for scatter in scatters]) > 20


def test_the_likelihood_is_that_of_scipys_f_distribution() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is optional")
    variance, d, of_rounds = np.array(drawn(1, 20, 3, 0.01)).T

    def theirs(scatter: Scatter) -> float:
        expected = scatter.factor * (scatter.luck**2 + of_rounds)
        return float(np.sum(stats.f.logpdf(variance, d, scatter.degrees, scale=expected)))

    both = [(moderation._likelihood(variance, d, of_rounds, scatter), theirs(scatter))
            for scatter in (Scatter(0.01, 1.0, 5.0), Scatter(0.003, 2.0, 30.0))]  # fmt: skip
    assert both[0][0] - both[1][0] == pytest.approx(both[0][1] - both[1][1])


def test_cases_that_differ_help_each_other_less() -> None:
    degrees = [learnt(drawn(seed, 60, 3, 0.02, alike=4)) for seed in range(20)]
    assert 2.5 < np.median([scatter.degrees for scatter in degrees if scatter is not None]) < 7


def test_few_cases_and_single_processes_say_nothing() -> None:
    assert learnt(drawn(0, moderation.FEWEST - 1, 3, 0.01)) is None
    assert learnt([Seen(0.0, 0, 1e-5)] * 50) is None


def test_a_case_of_its_own_is_weighed_by_degrees_of_freedom() -> None:
    weighed = moderated(
        Seen(variance=9.0, degrees=2, of_rounds=0.0), Scatter(luck=1.0, factor=1.0, degrees=6)
    )
    assert weighed == pytest.approx(((6 * 1 + 2 * 9) / 8, 8))
    alone = moderated(Seen(variance=0.0, degrees=0, of_rounds=3.0), Scatter(luck=1.0, factor=0.5, degrees=6))
    assert alone == pytest.approx((2.0, 6))


def run_of(seed: int, cases: int, processes: int, rounds: int = 12) -> list[tuple[Timing, Timing]]:
    """Equal code, twice in each case: processes with a luck of 1.5 %, cases that scatter by 0.5 to 8 %, heavy tails."""
    numbers = np.random.default_rng(seed)
    pairs = []
    for case in range(cases):
        luck = np.repeat(numbers.normal(0, 0.015, processes), rounds)
        logs = luck + math.exp(numbers.uniform(math.log(0.005), math.log(0.08))) * numbers.standard_t(
            3, luck.size
        )
        both = [
            Timing(case=str(case), sizes={}, causal=True, options="", implementation=name, device="cpu",
                   dtype="float32", direction="forward", clock="host", seconds=seconds.tolist(),
                   rounds=list(range(luck.size)), processes=np.repeat(range(processes), rounds).tolist(),
                   flops=1, bytes=1)
            for name, seconds in (("a", np.exp(logs)), ("b", np.ones(luck.size)))
        ]  # fmt: skip
        pairs.append((both[0], both[1]))
    return pairs


@pytest.mark.parametrize("processes", [2, 3])
def test_moderated_intervals_hold_the_truth_as_often_as_they_say_and_are_narrower(processes: int) -> None:
    """95 % of 600, of which those of one run are not independent."""
    held, widths, alone = 0, list[float](), list[float]()
    for seed in range(20):
        pairs = run_of(seed, 30, processes)
        scatter = statistics.scatter_of(pairs)
        for mine, other in pairs:
            args = statistics.paired(mine, other)
            interval, student = (statistics.paired_ratio(*args, scatter=known) for known in (scatter, None))
            held += interval.low <= 1 <= interval.high
            widths.append(math.log(interval.high / interval.low))
            alone.append(math.log(student.high / student.low))
    assert 0.93 <= held / 600 <= 0.98
    assert np.median(widths) < 0.9 * np.median(alone)
    assert np.quantile(widths, 0.9) < 0.7 * np.quantile(alone, 0.9)


def test_one_process_is_judged_by_what_others_of_the_run_say() -> None:
    """Its own rounds know nothing of the luck of processes: with that from the run it is held as often as was said."""
    scatter = statistics.scatter_of(run_of(1, 60, 3))
    assert scatter is not None
    held = {True: 0, False: 0}
    for mine, other in run_of(2, 400, 1):
        args = statistics.paired(mine, other)
        for known in held:
            interval = statistics.paired_ratio(*args, scatter=scatter if known else None)
            held[known] += interval.low <= 1 <= interval.high
    assert held[False] < 0.85 * 400
    assert 0.92 * 400 <= held[True] <= 0.99 * 400


def test_a_comparison_takes_the_scatter_from_its_own_control() -> None:
    (mine, other), *_ = run_of(3, 1, 2)
    narrow = Control("0", "b", "cpu", "float32", 1.0, 0.999, 1.001, scatter=Scatter(0.001, 1.0, 40.0))
    plain = Control("0", "b", "cpu", "float32", 1.0, 0.999, 1.001)
    interval, without = (statistics.compare(mine, other, [control]).interval for control in (narrow, plain))
    assert interval.ratio == without.ratio
    assert math.log(interval.high / interval.low) < math.log(without.high / without.low)
