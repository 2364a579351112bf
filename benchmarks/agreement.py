"""Do the engine's times agree with those of torch.utils.benchmark, which others measure with?

    python -m qkverify.benchmarks.agreement

Both time the same prepared calls, turn by turn, so that a drift of the machine is in both, and go on until the interval of
their ratio is narrow enough to answer (or for as many rounds as are allowed, on a machine with much else to do). Cases are
those whose call takes more than a millisecond; exit 1 where the medians of a case differ by more than 3 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from qkverify.contract import registry
from qkverify.results import Direction
from qkverify.timing import statistics
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.measurement import prepared
from qkverify.timing.workloads import named

NAMES = ("torch_sdpa-flash", "torch_sdpa-math", "torch_eager", "numpy_textbook")
CASES = ("transformer-base-256", "transformer-base-512", "gpt2-small")
DIRECTIONS: tuple[Direction, ...] = ("forward", "forward+backward")
SHORTEST_SECONDS = 1e-3
MOST_DIFFERENT = 0.03
NARROW = 0.01  # a ratio is known this well, or more rounds are taken


def theirs(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call as torch.utils.benchmark measures them, with the threads that torch uses here."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(timer.timeit(repeats).median)


def ratio_of(
    cell: BenchmarkCase, fewest: int, most: int, sample_seconds: float = 0.05
) -> tuple[float, statistics.Interval, int] | None:
    """Seconds of a call, ours over theirs, and the rounds taken; None for a call under a millisecond."""
    ready = prepared(cell)
    ready.call()
    once = ready.clock.sample(ready.call, 3)
    if once < SHORTEST_SECONDS:
        return None
    repeats = max(1, math.ceil(sample_seconds / once))
    ours: list[float] = []
    other: list[float] = []
    # The interval is looked at now and then: to stop at the first narrow one would favour lucky ones.
    while True:
        for number in range(fewest):
            for mine in (True, False) if number % 2 else (False, True):
                if mine:
                    ready.call()  # theirs makes two calls that do not count before each measurement
                    ours.append(ready.clock.sample(ready.call, repeats))
                else:
                    other.append(theirs(ready.call, repeats))
        ratio = statistics.paired_ratio(ours, other)
        if ratio.high - ratio.low <= 2 * NARROW or len(ours) >= most:
            return float(np.median(ours)), ratio, len(ours)


def main() -> None:
    """Print a line for each case."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=20, help="of one case at least")
    options.add_argument("--most-rounds", type=int, default=200, help="of one case at most")
    arguments = options.parse_args()
    worst = 0.0
    for case in CASES:
        for direction in DIRECTIONS:
            for name in NAMES:
                cell = BenchmarkCase(named(case), registry.find(name)[0], "cpu", "float32", direction)
                measured = ratio_of(cell, arguments.rounds, arguments.most_rounds)
                if measured is None:
                    continue
                seconds, ratio, rounds = measured
                worst = max(worst, abs(ratio.ratio - 1))
                print(f"{case:22} {direction:17} {name:18} {1e3 * seconds:8.2f} ms   ours / theirs {ratio.ratio:.4f} "
                      f"({ratio.low:.4f} .. {ratio.high:.4f}, {rounds} rounds)", flush=True)  # fmt: skip
    print(f"largest difference {100 * worst:.1f} %")
    raise SystemExit(worst > MOST_DIFFERENT)


if __name__ == "__main__":
    main()
