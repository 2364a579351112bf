"""What samples say: medians, intervals of ratios, and the word for a difference.

Two implementations are compared by pairs: in every round both ran within moments of each other, so what the
machine did in that round is in both times and cancels in the logarithm of their ratio. The median log-ratio
is moved little by disturbed rounds.

Two processes that run the same code differ: memory lies elsewhere, threads were placed otherwise. More rounds
in one process only measure that process more exactly, so the unit that counts is the process: the estimate is
the mean of the processes' medians, its interval Student's t of those medians (Kalibera and Jones, Rigorous
Benchmarking in Reasonable Time, 2013). Simulated with three processes of twenty heavy-tailed rounds that
differ by 1 %, a nominal 95 % is 95 % so, 80 % by a bootstrap clustered by process and 57 % by a bootstrap over
rounds (`docs/statistics.md` repeats it). Samples of a single process have only the last of these.

A run of many cases knows more: how much processes scatter on this machine is learnt from all of them, and a case
of two or three processes, or of one, is judged with that (`moderation`).

An interval knows only the scatter that it has seen. The A/A control (one implementation timed under two names
in the same rounds) shows what a difference of nothing looks like at that very moment, and no difference
within the control's own reach is called one. Only NumPy is used, with a fixed seed, so that the same samples
give the same words everywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from qkverify.results import Control, Scatter, Timing
from qkverify.timing import moderation

Word = Literal["faster", "slower", "same", "undecided"]

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST_ROUNDS = 3  # under three pairs an interval says nothing
VARIANCE_DRAWS = 200  # of a median, for its variance: to a tenth
NORMAL = 1.960  # Student's t, two-sided 95 %, with endless degrees of freedom; below for 1, 2, ...
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093)  # fmt: skip
ALONE = -1  # the round of a call that was made by itself, beside no other
CLEAR = 2.0  # beyond the very extremes of all samples: no scatter that was seen reaches it
MOST_REACH = 10.0  # an interval that reaches further than a factor of ten to both sides is printed as none
TOO_FEW = "too few processes or rounds for an interval"
QUIET = math.log(1.01)  # differences under 1 % are never called; a control within it is a quiet machine


class Interval(NamedTuple):
    """A ratio of times and the interval in which it lies with `CONFIDENCE`."""

    ratio: float
    low: float
    high: float


class Comparison(NamedTuple):
    """`word` says what the candidate is, `interval` its time over the baseline's, from `rounds` pairs."""

    word: Word
    interval: Interval
    rounds: int


def median(seconds: Sequence[float]) -> float:
    """The median, in the unit of its input; NaN of nothing."""
    return float(np.median(seconds)) if len(seconds) else math.nan


def spread(seconds: Sequence[float]) -> float:
    """The median distance from the median, as a fraction of the median; NaN of nothing."""
    middle = median(seconds)
    return median([abs(second - middle) for second in seconds]) / middle if len(seconds) else math.nan


def paired_ratio(
    candidate: Sequence[float],
    baseline: Sequence[float],
    processes: Sequence[int] = (),
    *,
    seed: int = 0,
    scatter: Scatter | None = None,
) -> Interval:
    """candidate / baseline of times measured in the same rounds, element by element.

    `processes` says which process each round ran in; without, or with one only, the interval is that of this
    process, unless `scatter` says what another would have given. Fewer than three pairs give an interval from nothing
    to infinity.
    """
    ratios = np.log(np.asarray(candidate, float) / np.asarray(baseline, float))
    numbers = np.asarray(processes if len(processes) else np.zeros(ratios.size))
    if scatter is not None and ratios.size >= FEWEST_ROUNDS:
        medians = _by_process(ratios, numbers)
        moderated = moderation.moderated(seen(ratios, numbers), scatter)
        return _around(float(np.mean(medians)), moderated.variance / len(medians), moderated.degrees)
    return _interval_of(ratios, numbers, seed)


def scatter_of(pairs: Iterable[tuple[Timing, Timing]]) -> Scatter | None:
    """What these comparisons of one run have in common; None where they are too few, or of one process each."""
    comparisons = []
    for candidate, baseline in pairs:
        mine, other, processes = paired(candidate, baseline)
        if len(mine) >= FEWEST_ROUNDS:
            comparisons.append(seen(np.log(np.asarray(mine) / np.asarray(other)), np.asarray(processes)))
    return moderation.learnt(comparisons)


def seen(ratios: np.ndarray, processes: np.ndarray) -> moderation.Seen:
    """How log-ratios scatter: the medians of processes, and the median of a process by its own rounds (a bootstrap)."""
    medians = _by_process(ratios, processes)
    numbers = np.random.default_rng(0)
    rounds = [ratios[processes == process] for process in np.unique(processes)]
    drawn = [
        np.median(
            of_process[numbers.integers(of_process.size, size=(VARIANCE_DRAWS, of_process.size))], axis=1
        )
        for of_process in rounds
    ]
    own_variance = float(np.mean([np.var(medians_drawn) for medians_drawn in drawn]))
    between = float(np.var(medians, ddof=1)) if len(medians) > 1 else 0.0
    return moderation.Seen(between, len(medians) - 1, own_variance)


def mean_ratio(medians: Iterable[Sequence[float]]) -> Interval:
    """The geometric mean over cases, from each case's log-ratios by process: what is common to a process counts once.

    Cases with different numbers of processes are cut to the fewest. Nothing in common gives no interval.
    """
    rows = [list(row) for row in medians]
    fewest = min((len(row) for row in rows), default=0)
    if not fewest:
        return Interval(math.nan, 0.0, math.inf)
    return student([float(np.mean([row[process] for row in rows])) for process in range(fewest)])


def student(logs: Sequence[float]) -> Interval:
    """The mean of independent log-ratios and Student's interval around it; endless for fewer than two."""
    count, middle = len(logs), float(np.mean(logs))
    if count < 2:
        return Interval(math.exp(middle), 0.0, math.inf)
    return _around(middle, float(np.var(logs, ddof=1)) / count, count - 1)


def _around(middle: float, variance: float, degrees: float) -> Interval:
    """Student's interval around a log-ratio whose variance is known with so many degrees of freedom."""
    reach = _student(degrees) * math.sqrt(variance)
    return Interval(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))


def _interval_of(ratios: np.ndarray, processes: np.ndarray, seed: int) -> Interval:
    medians = _by_process(ratios, processes)
    if len(medians) > 1:
        return student(medians)
    if ratios.size == 0:
        return Interval(math.nan, 0.0, math.inf)
    middle = math.exp(float(np.median(ratios)))
    if ratios.size < FEWEST_ROUNDS:
        return Interval(middle, 0.0, math.inf)
    draws = np.random.default_rng(seed).integers(ratios.size, size=(RESAMPLES, ratios.size))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(ratios[draws], axis=1), [tail, 1 - tail])
    return Interval(middle, math.exp(float(low)), math.exp(float(high)))


def _by_process(values: np.ndarray, processes: np.ndarray) -> list[float]:
    """The median of each process, in the order of their numbers."""
    return [float(np.median(values[processes == process])) for process in np.unique(processes)]


def unpaired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Interval:
    """From the log-seconds of processes of two runs (`process_medians`): Welch's interval of their ratio.

    Degrees of freedom are those of the smaller run, which is never too many. Fewer than two processes in a run
    give an endless interval.
    """
    if not len(candidate) or not len(baseline):
        return Interval(math.nan, 0.0, math.inf)
    middle, fewest = float(np.mean(candidate)) - float(np.mean(baseline)), min(len(candidate), len(baseline))
    if fewest < 2:
        return Interval(math.exp(middle), 0.0, math.inf)
    squares = [float(np.var(logs, ddof=1)) / len(logs) for logs in (candidate, baseline)]
    return _around(middle, sum(squares), fewest - 1)


def process_medians(timing: Timing) -> list[float]:
    """The median log-seconds of each process, over its undisturbed rounds."""
    seconds, _, processes = paired(timing, timing)
    return _by_process(np.log(np.asarray(seconds, float)), np.asarray(processes))


def _student(degrees: float) -> float:
    """The quantile for any degrees of freedom: between two whole ones, and beyond the last, on the line in 1 / degrees, which
    lies a little above it. Fewer than one have the interval of none."""
    if degrees < 1:
        return math.inf
    return float(
        np.interp(
            1 / degrees, [0.0, *(1 / n for n in range(len(STUDENT), 0, -1))], [NORMAL, *reversed(STUDENT)]
        )
    )


def pooled(controls: Iterable[Control]) -> Interval:
    """The mean of the controls' ratios, each a difference of nothing; endless for fewer than two."""
    every = list(controls)
    if len(every) == 1:
        return Interval(every[0].ratio, every[0].low, every[0].high)
    return student([math.log(c.ratio) for c in every]) if every else Interval(math.nan, 0.0, math.inf)


def noise(controls: Iterable[Control | Interval]) -> float:
    """The largest |log ratio| that the intervals of controls reach, and never under that of 1 %."""
    edges = [edge for control in controls for edge in (control.low, control.high)]
    return max([QUIET, *(abs(math.log(edge)) if 0 < edge < math.inf else math.inf for edge in edges)])


def is_quiet(controls: Iterable[Control]) -> bool:
    """Whether every control's ratio lies within 1 % of one: differences of a few per cent can be judged."""
    return all(c.ratio > 0 and abs(math.log(c.ratio)) <= QUIET for c in controls)


def is_told(interval: Interval) -> bool:
    """Whether an interval says anything: of two processes Student's reaches from nothing to a hundred thousand."""
    return interval.low > 0 and interval.high < MOST_REACH**2 * interval.low


def verdict(interval: Interval, band: float = QUIET) -> Word:
    """The word for a ratio of times, `band` being what the control says noise can do, as a log-ratio.

    A difference must lie beyond the band as a whole; "same" means within 1 %, however wide the band is.
    """
    low, high = (math.log(edge) if edge > 0 else -math.inf for edge in (interval.low, interval.high))
    if low > band:
        return "slower"
    if high < -band:
        return "faster"
    return "same" if low >= -QUIET and high <= QUIET else "undecided"


def drop_disturbed_rounds(timing: Timing) -> list[float]:
    """The seconds of the rounds that nothing disturbed; of a process with too few of these, of all its rounds."""
    keep = _kept(timing.rounds, timing.processes, timing.disturbed)
    return [seconds for seconds, is_kept in zip(timing.seconds, keep, strict=True) if is_kept]


def paired(candidate: Timing, baseline: Timing) -> tuple[list[float], list[float], list[int]]:
    """The times of both in the rounds in which both ran and nothing disturbed them, and the process of each.

    A process with fewer than three such rounds keeps all that it has.
    """
    theirs = dict(zip(baseline.rounds, baseline.seconds, strict=True))
    processes = candidate.processes or [0] * len(candidate.seconds)
    mine = zip(candidate.rounds, candidate.seconds, processes, strict=True)
    both = [(n, seconds, theirs[n], process) for n, seconds, process in mine if n in theirs]
    if candidate is not baseline:
        both = [row for row in both if row[0] != ALONE]
    keep = _kept([n for n, *_ in both], [p for *_, p in both], [*candidate.disturbed, *baseline.disturbed])
    kept = [row for row, is_kept in zip(both, keep, strict=True) if is_kept]
    return [s for _, s, _, _ in kept], [t for _, _, t, _ in kept], [p for *_, p in kept]


def _kept(rounds: Sequence[int], processes: Sequence[int], disturbed: Sequence[int]) -> list[bool]:
    """Which rounds count: all that are not marked, and every round of a process that would have too few left."""
    processes = processes or [0] * len(rounds)
    marked = set(disturbed)
    left = Counter(process for number, process in zip(rounds, processes, strict=True) if number not in marked)
    return [
        number not in marked or left[process] < FEWEST_ROUNDS
        for number, process in zip(rounds, processes, strict=True)
    ]


def compare(candidate: Timing, baseline: Timing, controls: Iterable[Control] = ()) -> Comparison:
    """Two timings of one case from one run: only rounds in which both were timed are paired.

    Of the controls those of the same case, direction, device and dtype say what noise can do. A case that has
    none where others have was too short of rounds for one, and nothing is judged there.
    """
    mine, other, processes = paired(candidate, baseline)
    if not mine and candidate.seconds and baseline.seconds:
        return _apart(candidate, baseline)
    controls = list(controls)
    of_timing = own_controls(candidate, controls)
    scatter = of_timing[0].scatter if of_timing else None
    interval = paired_ratio(mine, other, processes, scatter=scatter)
    return Comparison(verdict(interval, band(candidate, controls)), interval, len(mine))


def _apart(candidate: Timing, baseline: Timing) -> Comparison:
    """Two timings of one case without a common round: what is far slower than the fastest is called once, by itself.

    There is no interval, and a word only where every sample of one is `CLEAR` times every sample of the other; its square,
    where neither has the fewest rounds.
    """
    ratio = median(drop_disturbed_rounds(candidate)) / median(drop_disturbed_rounds(baseline))
    clear = CLEAR if max(len(candidate.seconds), len(baseline.seconds)) >= FEWEST_ROUNDS else CLEAR**2
    slower = min(candidate.seconds) > clear * max(baseline.seconds)
    faster = clear * max(candidate.seconds) < min(baseline.seconds)
    word: Word = "slower" if slower else "faster" if faster else "undecided"
    return Comparison(word, Interval(ratio, 0.0, math.inf), 0)


def band(timing: Timing, controls: Sequence[Control]) -> float:
    """What noise can do to a timing's ratios, as a log-ratio, by the controls of a run."""
    of_timing = own_controls(timing, controls)
    return noise(of_timing) if of_timing or not controls else math.inf


def own_controls(timing: Timing, controls: Iterable[Control]) -> list[Control]:
    """The controls that were timed in the same rounds."""
    return [control for control in controls if control.group == timing.group]


def process_ratios(candidate: Timing, baseline: Timing) -> list[float]:
    """The median log-ratio of each process, for `mean_ratio`."""
    mine, other, processes = paired(candidate, baseline)
    return _by_process(np.log(np.asarray(mine, float) / np.asarray(other, float)), np.asarray(processes))


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean of ratios: a factor of two and a factor of a half make one. NaN of nothing."""
    return float(np.exp(np.mean(np.log(ratios)))) if len(ratios) else math.nan
