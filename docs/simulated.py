"""What the statistics do, shown on made-up machines of which the truth is known.

Every judgement is made by the public functions of `qkverify.timing.statistics`, so a change there changes the documentation.
Times are multiples of an honest call; every machine is drawn from a seeded generator.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from block import Made, block, picture

from qkverify.report.charts import ChartSeries, Point, Reach, interval_chart, line_chart
from qkverify.report.markdown import table
from qkverify.results import Control, Scatter
from qkverify.timing import moderation, statistics
from qkverify.units import percent

ROUNDS = 20
RUNS = 400


def share(value: float) -> str:
    """A share of runs; 99.5 % is not all of them."""
    return f"{100 * value:.1f} %"


class Machine(NamedTuple):
    """Scatter of one call and step of the drift between calls, as fractions; how often a call is disturbed."""

    scatter: float
    drift: float
    disturbed: float = 0.0

    def calls(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """How much longer than an honest call each of `count` calls in a row takes."""
        drift = np.cumsum(rng.normal(0, self.drift, count))
        hit = np.where(rng.random(count) < self.disturbed, rng.uniform(0.5, 3.0, count), 0.0)
        return np.exp(drift + rng.normal(0, self.scatter, count)) + hit


LOADED = Machine(scatter=0.02, drift=0.01, disturbed=0.05)


def interleaved(
    machine: Machine, rng: np.random.Generator, slower: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Candidate and baseline, one call of each in every round, in random order."""
    calls = machine.calls(2 * ROUNDS, rng).reshape(ROUNDS, 2)
    shuffled = rng.permuted(calls, axis=1)
    return shuffled[:, 0] * slower, shuffled[:, 1]


def one_after_the_other(machine: Machine, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    calls = machine.calls(2 * ROUNDS, rng)
    return calls[:ROUNDS], calls[ROUNDS:]


def welch_differs(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a t test of the means calls a difference: |t| above 2, its 95 % threshold for so many samples."""
    return bool(abs(a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size) > 2)


class Way(NamedTuple):
    """One way of comparing two copies of the same code, over many runs: ratios, and how often they were told apart."""

    name: str
    ratios: np.ndarray
    told_apart: float

    @property
    def usual(self) -> float:
        return float(np.median(np.abs(self.ratios - 1)))

    @property
    def range(self) -> tuple[float, float]:
        low, high = np.quantile(self.ratios - 1, [0.025, 0.975])
        return float(low), float(high)

    @property
    def worst(self) -> float:
        return float(np.abs(self.ratios - 1).max())


def ways() -> list[Way]:
    """The same code twice on a loaded machine, compared in three ways."""
    rng = np.random.default_rng(11)
    apart = [one_after_the_other(LOADED, rng) for _ in range(RUNS)]
    pairs = [interleaved(LOADED, rng) for _ in range(RUNS)]
    judged = [statistics.paired_ratio(list(a), list(b)) for a, b in pairs]
    said = [statistics.verdict(interval) for interval in judged]
    return [
        Way(
            "one after the other, means, t test",
            np.array([a.mean() / b.mean() for a, b in apart]),
            float(np.mean([welch_differs(a, b) for a, b in apart])),
        ),
        Way(
            "interleaved, means, t test",
            np.array([a.mean() / b.mean() for a, b in pairs]),
            float(np.mean([welch_differs(a, b) for a, b in pairs])),
        ),
        Way(
            "interleaved, paired, verdict",
            np.array([interval.ratio for interval in judged]),
            float(np.mean([word in ("faster", "slower") for word in said])),
        ),
    ]


@block("same-code-twice")
def _() -> Made:
    measured = ways()
    names = ("A then B, t test", "A B A B, t test", "A B A B, paired")  # what fits beside a chart
    chart = interval_chart(
        [_reach(name, way) for name, way in zip(names, measured, strict=True)],
        alt="False differences of the same code in three ways of measuring",
        axis="difference found, in per cent (95 % of the runs)",
        expected=0.0,
        span=(0.0, 0.0),
    )
    rows = [[w.name, percent(w.usual), percent(w.worst), share(w.told_apart)] for w in measured]
    head = ["way", "usual false difference", "worst", "called a difference"]
    drawn = picture(
        "same-code-twice", chart, "How far apart the same code is found to be, in three ways of measuring"
    )
    return Made(f"{table(head, rows)}\n\n{drawn.text}", drawn.pictures)


def _reach(name: str, way: Way) -> Reach:
    low, high = (100 * edge for edge in way.range)
    return Reach(name, 100 * float(np.median(way.ratios) - 1), low, high, f"{low:+.0f} .. {high:+.0f}", "")


SLOWDOWNS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)


@block("planted-slowdowns")
def _() -> Made:
    """How often each word is said of a slowdown of known size."""
    rng = np.random.default_rng(12)
    machine = Machine(scatter=0.02, drift=0.005)
    rows, slower = [], []
    for size in SLOWDOWNS:
        pairs = [interleaved(machine, rng, 1 + size) for _ in range(RUNS // 2)]
        said = [statistics.verdict(statistics.paired_ratio(list(a), list(b))) for a, b in pairs]
        shares = {word: said.count(word) / len(said) for word in ("slower", "same", "undecided", "faster")}
        rows.append([f"{100 * size:g} %", *(share(shares[word]) for word in shares)])
        slower.append(shares["slower"])
    points = [
        Point(100 * size, part, share(part)) for size, part in zip(SLOWDOWNS, slower, strict=True) if size
    ]
    chart = line_chart(
        [ChartSeries("slower", 0, points)],
        alt="Share of runs that are called slower, by the size of the slowdown",
        unit=percent,
        x_label="planted slowdown, per cent",
        share=True,
    )
    head = ["planted slowdown", "slower", "same", "undecided", "faster"]
    drawn = picture(
        "planted-slowdowns", chart, "Share of runs called slower, against the size of a planted slowdown"
    )
    return Made(f"{table(head, rows)}\n\n{drawn.text}", drawn.pictures)


@block("processes")
def _() -> str:
    """The same code twice, where every fresh process has luck of its own (where its memory lies, say)."""
    rng = np.random.default_rng(13)
    luck, scatter, runs = 0.02, 0.005, RUNS // 2
    rows = []
    for processes in (1, 3, 5, 10):
        alarms = {"rounds": 0, "bootstrap": 0, "student": 0, "verdict": 0}
        for _ in range(runs):
            control, candidate = (_in_processes(processes, luck, scatter, rng) for _ in range(2))
            rounds, judged, same = (_interval(candidate, False), _interval(candidate), _interval(control))
            band = statistics.noise([Control("", "", "", "", *same)])
            low, high = _clustered_bootstrap(candidate, rng)
            alarms["rounds"] += not rounds.low <= 1 <= rounds.high
            alarms["bootstrap"] += not low <= 0 <= high
            alarms["student"] += not judged.low <= 1 <= judged.high
            alarms["verdict"] += statistics.verdict(judged, band) in ("faster", "slower")
        rows.append([str(processes), *(share(count / runs) for count in alarms.values())])
    head = [
        "processes",
        "bootstrap over all rounds",
        "bootstrap clustered by process",
        "Student's t over processes",
        "verdict, with the control's band",
    ]
    return table(head, rows)


CASES = 40


@block("moderated")
def _() -> str:
    """The same code twice in the many cases of a run: each judged by its own processes, and with what all of them say."""
    rng = np.random.default_rng(14)
    rows = []
    for processes in (1, 2, 3, 5):
        wrong, widths = {"own": 0, "all": 0}, {"own": list[float](), "all": list[float]()}
        for _ in range(RUNS // 20):
            learnt = _cases(max(2, processes), rng)
            cases = learnt if processes > 1 else [logs[:1] for logs in learnt]
            scatter = moderation.learnt([_seen(logs) for logs in learnt])
            for logs in cases:
                for name, known in (("own", None), ("all", scatter)):
                    interval = _interval(logs, scatter=known)
                    wrong[name] += not interval.low <= 1 <= interval.high
                    widths[name].append(np.log(interval.high / interval.low) / 2 if interval.low else np.inf)
        count = len(widths["own"])
        half = [
            percent(float(np.expm1(np.quantile(widths[name], at)))) for name in widths for at in (0.5, 0.9)
        ]
        rows.append(
            [str(processes), share(wrong["own"] / count), *half[:2], share(wrong["all"] / count), *half[2:]]
        )
    head = [
        "processes",
        "wrong, by its own",
        "reach",
        "of the widest tenth",
        "wrong, moderated",
        "reach",
        "of the widest tenth",
    ]
    return table(head, rows)


def _cases(processes: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Log-ratios (processes, rounds) of equal code, a case each: luck of 1 % for every process, rounds that scatter by 0.5 to
    8 %, with heavy tails."""
    scatters = np.exp(rng.uniform(np.log(0.005), np.log(0.08), CASES))
    return [
        0.01 * rng.standard_normal((processes, 1)) + scatter * rng.standard_t(3, (processes, 12))
        for scatter in scatters
    ]


def _seen(logs: np.ndarray) -> moderation.Seen:
    return statistics.seen(logs.ravel(), np.repeat(np.arange(logs.shape[0]), logs.shape[1]))


def _interval(
    logs: np.ndarray, by_process: bool = True, scatter: Scatter | None = None
) -> statistics.Interval:
    """The interval of log-ratios (processes, rounds), with or without knowing which process each round ran in."""
    numbers = np.repeat(np.arange(logs.shape[0]), logs.shape[1]).tolist() if by_process else []
    return statistics.paired_ratio(np.exp(logs).ravel().tolist(), [1.0] * logs.size, numbers, scatter=scatter)


def _clustered_bootstrap(logs: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The middle 95 % of medians of processes and rounds drawn again: what is usual, and too narrow for few processes."""
    processes, rounds = logs.shape
    which = rng.integers(processes, size=(200, processes, 1))
    drawn = logs[which, rng.integers(rounds, size=(200, processes, rounds))].reshape(200, -1)
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _in_processes(processes: int, luck: float, scatter: float, rng: np.random.Generator) -> np.ndarray:
    """Log-ratios of the same code to itself, (processes, rounds)."""
    each = rng.normal(0, luck, (processes, 1))
    return np.asarray(each + rng.normal(0, scatter, (processes, ROUNDS)))


@block("one-disturbed-round")
def _() -> str:
    """One round in twenty in which the candidate was interrupted, for as long as ten calls."""
    rng = np.random.default_rng(14)
    a, b = interleaved(Machine(scatter=0.01, drift=0.005), rng)
    hit = a.copy()
    hit[7] += 10.0
    rows = [
        [name, f"{x.mean() / b.mean():.3f}", f"{statistics.paired_ratio(list(x), list(b)).ratio:.3f}"]
        for name, x in (("quiet", a), ("one round disturbed", hit))
    ]
    return table(["run", "ratio of the means", "median of the paired ratios"], rows)


@block("constants")
def _() -> str:
    """The numbers that the verdict is made with."""
    rows = [
        ["confidence of an interval", percent(statistics.CONFIDENCE)],
        ["times that rounds are drawn again", f"{statistics.RESAMPLES:,}"],
        ["fewest rounds with an interval", str(statistics.FEWEST_ROUNDS)],
        ["differences that are never called one", f"under {percent(np.expm1(statistics.QUIET))}"],
    ]
    return table(["what", "value"], rows)
