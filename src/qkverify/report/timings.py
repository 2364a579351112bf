"""Timings as charts and tables want them: by case, and as series over length."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkverify import units
from qkverify.report.model import DIRECTIONS, Report
from qkverify.results import Timing
from qkverify.timing import statistics, untimed
from qkverify.timing.ceilings import fraction_of_roofline

if TYPE_CHECKING:
    from qkverify.report.charts import ChartSeries

FASTEST, FASTEST_TIMED = "fastest", "fastest of those timed"
FEWEST_LENGTHS = 3  # fewer points fit any exponent


class TimingNumbers(NamedTuple):
    """One timing in numbers: seconds of a call, scatter, FLOP/s, and the share of the measured roofline."""

    timing: Timing
    seconds: float
    spread: float
    rate: float
    share: float | None

    @property
    def tip(self) -> str:
        t = self.timing
        share = "" if self.share is None else f", {units.percent(self.share)} of the roofline"
        time = f"{units.seconds(self.seconds)} ± {units.percent(self.spread)}"
        return f"{t.implementation}, {t.sizes['K']}: {time}, {units.flops(self.rate)}{share}"


class TimingLine(NamedTuple):
    """One implementation on one case in one direction.

    `ratio` and `word` are against the fastest: "1.56 × (1.53 .. 1.59)", "slower". Where something that could run was
    left out, the first is only the "fastest of those timed".
    """

    timing: Timing
    timed: TimingNumbers | None
    ratio: str
    word: str
    share_of_slowest: float

    @property
    def without_interval(self) -> bool:
        """Whether there is a ratio, and too few processes or rounds for its interval."""
        return bool(self.word) and self.word not in (FASTEST, FASTEST_TIMED) and "(" not in self.ratio


class TimeGrowth(NamedTuple):
    """time ~ length^exponent, fitted over `fitted` lengths from `shortest` to `longest`.

    `low .. high` holds the exponent with statistics.CONFIDENCE; `last` is that of the last step alone; `counted`
    that of the counted operations.
    """

    shortest: int
    longest: int
    fitted: int
    exponent: float
    low: float | None
    high: float | None
    last: float
    counted: float | None


@dataclass(frozen=True)
class Family:
    """Cases that differ in length only: `name` is what their names share, `shape` the rest of the call."""

    name: str
    shape: str
    timings: list[Timing]

    @cached_property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(t.case for t in self.timings))


def timed(timing: Timing, report: Report) -> TimingNumbers | None:
    """None where there are no samples."""
    if not timing.seconds:
        return None
    middle = statistics.median(statistics.drop_disturbed_rounds(timing))
    share = fraction_of_roofline(timing, middle, report.ceilings)
    return TimingNumbers(timing, middle, statistics.spread(timing.seconds), timing.flops / middle, share)


def at(report: Report, device: str, dtype: str) -> list[Timing]:
    return [t for t in report.timings if (t.device, t.dtype) == (device, dtype)]


def directions(timings: Iterable[Timing]) -> list[str]:
    return in_directions({t.direction for t in timings})


def in_directions(present: set[str]) -> list[str]:
    return [direction for direction in DIRECTIONS if direction in present]


def families(timings: Iterable[Timing]) -> tuple[list[Family], list[str]]:
    """Series over length (two lengths or more of square attention), and the cases that belong to none."""
    groups: dict[tuple[object, ...], list[Timing]] = {}
    for t in timings:
        s = t.sizes
        square = s["Q"] == s["K"] or t.case
        groups.setdefault((s["B"], s["H"], s["G"], s["D"], s["E"], t.causal, t.options, square), []).append(t)
    over_length, alone = [], []
    for group in groups.values():
        cases = list(dict.fromkeys(t.case for t in group))
        if len({t.sizes["K"] for t in group}) > 1:
            name = " / ".join(dict.fromkeys(re.sub(r"[-_ ]?\d+$", "", case) for case in cases))
            ordered = sorted(group, key=lambda t: t.sizes["K"])
            over_length.append(Family(name, shape(group[0], length="length"), ordered))
        else:
            alone += cases
    return over_length, alone


def shape(timing: Timing, *, length: str = "") -> str:
    """The call in words: "1 x 12 x 1024 x 64, causal" is batch, heads, length, head size."""
    s = timing.sizes
    heads = f"{s['H']}" if s["H"] == s["G"] else f"{s['H']}({s['G']})"
    lengths = length or (f"{s['Q']}" if s["Q"] == s["K"] else f"{s['Q']}→{s['K']}")
    size = f"{s['D']}" if s["D"] == s["E"] else f"{s['D']}/{s['E']}"
    return ", ".join(
        filter(None, [f"{s['B']} × {heads} × {lengths} × {size}", "causal" * timing.causal, timing.options])
    )


def series(values: Iterable[tuple[Timing, float, str]], report: Report) -> list[ChartSeries]:
    """One series over length for each implementation, from (timing, value, tooltip); zeros are left out."""
    from qkverify.report.charts import ChartSeries, Point  # needs markupsafe, which comes with jinja2

    known = [(timing, value, tip) for timing, value, tip in values if value > 0]
    drawn = []
    for name in report.implementations:
        points = [Point(t.sizes["K"], value, tip) for t, value, tip in known if t.implementation == name]
        if points:
            drawn.append(ChartSeries(name, report.colour(name), points, {"implementation": name}))
    return drawn


def lines(timings: Iterable[Timing], report: Report) -> list[TimingLine]:
    """The rows of one case in one direction, fastest first, what was not timed last."""
    both = [(t, timed(t, report)) for t in timings]
    ran = sorted((pair for pair in both if pair[1]), key=lambda pair: pair[1].seconds if pair[1] else 0.0)
    slowest = max((numbers.seconds for _, numbers in ran if numbers), default=1.0)
    against = [_against(timing, ran[0][0], report) for timing, _ in ran[1:]]
    is_alone = all(
        word == "slower" for _, word in against
    )  # else it is only what the others are held against
    first = FASTEST_TIMED if untimed.left_out(t for t, _ in both) else FASTEST
    words = [("", first) if is_alone else ("1 ×", ""), *against] if ran else []
    timed_lines = [
        TimingLine(timing, numbers, *said, numbers.seconds / slowest)
        for (timing, numbers), said in zip(ran, words, strict=True)
        if numbers is not None
    ]
    return timed_lines + [TimingLine(t, None, "", "", 0.0) for t, numbers in both if numbers is None]


def _against(timing: Timing, fastest: Timing, report: Report) -> tuple[str, str]:
    """Ratio with interval, and the word for it: of a difference within the reach of the case's own control, none."""
    compared = statistics.compare(timing, fastest, report.controls)
    if np.isnan(compared.interval.ratio):
        return "", ""
    return f"{units.ratio(compared.interval.ratio)} × {edges(compared.interval)}".rstrip(), compared.word


def edges(interval: statistics.Interval) -> str:
    """ "(1.53 .. 1.59)"; nothing where too few processes or rounds give none."""
    return (
        f"({units.ratio(interval.low)} .. {units.ratio(interval.high)})"
        if statistics.is_told(interval)
        else ""
    )


def exponent(lengths: Iterable[int], values: Iterable[float | None]) -> float | None:
    """p of the least-squares fit value ~ length^p; None under three points."""
    pairs = [(length, value) for length, value in zip(lengths, values, strict=True) if value]
    if len({length for length, _ in pairs}) < FEWEST_LENGTHS:
        return None
    x, y = np.log(np.array(pairs, dtype=np.float64)).T
    return float(_slopes(x, y))


def growth(timings: Iterable[Timing]) -> TimeGrowth | None:
    """How the time of one implementation grows over its lengths; None under three timed lengths.

    The interval is Student's t of the processes' own slopes; of a single process a percentile bootstrap, its rounds
    drawn again. It says what others would have given. That a power of the length does not fit (overheads at short
    lengths, caches at long ones) is no scatter, and is shown by `last` instead, the exponent between the two
    longest. Without three rounds at every length there is no interval.
    """
    ran = sorted((t for t in timings if t.seconds), key=lambda t: t.sizes["K"])
    lengths = [t.sizes["K"] for t in ran]
    medians = [statistics.median(statistics.drop_disturbed_rounds(t)) for t in ran]
    fit = exponent(lengths, medians)
    if fit is None:
        return None
    x = np.log(np.array(lengths, dtype=np.float64))
    last = float(np.log(medians[-1] / medians[-2]) / (x[-1] - x[-2]))
    low, high = _slope_interval(x, ran)
    counted = exponent(lengths, [float(t.flops) for t in ran])
    return TimeGrowth(lengths[0], lengths[-1], len(lengths), fit, low, high, last, counted)


def _slope_interval(x: np.ndarray, ran: list[Timing]) -> tuple[float, float] | tuple[None, None]:
    """The interval of the slope of log-seconds over x, the log-lengths of `ran`."""
    by_process = [statistics.process_medians(t) for t in ran]
    count = min(map(len, by_process))
    if count > 1 and all(t.processes for t in ran):
        slopes = _slopes(x, np.array([medians[:count] for medians in by_process]))
        interval = statistics.student(slopes.tolist())
        return float(np.log(interval.low)), float(np.log(interval.high))
    if min(len(t.seconds) for t in ran) < statistics.FEWEST_ROUNDS:
        return None, None
    rng = np.random.default_rng(0)
    drawn = [_redrawn(t.seconds, rng) for t in ran]
    tail = (1 - statistics.CONFIDENCE) / 2
    low, high = map(float, np.quantile(_slopes(x, np.log(drawn)), [tail, 1 - tail]))
    return low, high


def _redrawn(seconds: list[float], rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Medians of samples drawn again with replacement."""
    draws = rng.integers(len(seconds), size=(statistics.RESAMPLES, len(seconds)))
    return np.asarray(np.median(np.asarray(seconds)[draws], axis=1))


def _slopes(x: Any, y: Any) -> Any:
    """The slope of the least-squares line through (x, y): y (n,) or (n, resamples)."""
    centred = x - x.mean()
    return centred @ y / (centred @ centred)
