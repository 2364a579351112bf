"""Does a comparison see what is there, and nothing else? Slow-downs of known size, planted and measured many times.

    python -m qkverify.benchmarks.sensitivity --runs 20 --load

Five implementations do the same attention over a hundred sequences, one after the other; three of them do some sequences
twice, which is 2 %, 5 % and 15 % more of the very same work. Each run times all of them at three lengths as `qkverify bench`
does. The twin that does nothing more must be called neither faster nor slower, the others slower. `--load` keeps another
process busy. The last lines say how often each was called what, and how far the A/A controls reached.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkverify import implementation
from qkverify.contract.registry import load_file, registered_by
from qkverify.results import Control, Timing, Writer, of_kind, read
from qkverify.timing import statistics
from qkverify.timing.grid import run_grid
from qkverify.timing.workloads import Workload

SEQUENCES = 100
WORKLOADS = [
    Workload(
        name=f"one-by-one-{queries}",
        source="made for this",
        batch=SEQUENCES,
        heads=2,
        key_size=32,
        queries=queries,
    )
    for queries in (32, 48, 64)
]
PLANTED = {"nothing": 0, "two_per_cent": 2, "five_per_cent": 5, "fifteen_per_cent": 15}


def one_by_one(query: np.ndarray, key: np.ndarray, value: np.ndarray, again: int) -> np.ndarray:
    """Attention of each sequence; the first `again` of them are done a second time."""
    output = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    visible = np.tri(query.shape[-2], key.shape[-2], key.shape[-2] - query.shape[-2], dtype=bool)
    for entry in (*range(query.shape[0]), *range(min(again, query.shape[0]))):
        scores = query[entry] @ key[entry].swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
        scores = np.where(visible, scores, query.dtype.type(-1e30))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        output[entry] = weights @ value[entry] / weights.sum(-1, keepdims=True)
    return output


def declare(name: str, again: int) -> None:
    @implementation(
        name=name, dtypes=("float32",), causal_alignment="bottom-right", requires=("K >= Q", "G == H")
    )
    def attention(query, key, value, *, causal=True):  # type: ignore[no-untyped-def]
        return one_by_one(query, key, value, again)


declare("baseline", 0)
for planted, extra in PLANTED.items():
    declare(planted, extra)


class Seen(NamedTuple):
    """What one run said of one planted slow-down in one case, and that case's A/A control."""

    case: str
    planted: str
    found: statistics.Comparison
    control: Control | None


def once(seed: int, *, seconds: float, processes: int, rounds: int) -> list[Seen]:
    """One run, as `qkverify bench` makes it."""
    declared = registered_by(load_file(__file__))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        with Writer(path) as writer:
            run_grid(writer, declared, budget_seconds=seconds, workloads=lambda device: WORKLOADS,
                     directions=("forward",), seed=seed, processes=processes, most_rounds=rounds)  # fmt: skip
        records = read(path)
    timings = {(t.case, t.implementation): t for t in of_kind(records, Timing)}
    controls = {control.case: control for control in of_kind(records, Control)}
    return [
        Seen(case, name, statistics.compare(timings[case, name], timings[case, "baseline"], controls.values()),
             controls.get(case))
        for case in (workload.name for workload in WORKLOADS)
        for name in PLANTED
    ]  # fmt: skip


def main() -> None:
    """Run, and print how often each slow-down was called what."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--seconds", type=float, default=30.0, help="budget of one run")
    options.add_argument("--processes", type=int, default=5)
    options.add_argument("--rounds", type=int, default=100, help="rounds of a process at most")
    options.add_argument("--load", action="store_true", help="keep another process busy meanwhile")
    arguments = options.parse_args()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if arguments.load else None
    comparisons: list[Seen] = []
    try:
        for run in range(arguments.runs):
            comparisons += once(
                run, seconds=arguments.seconds, processes=arguments.processes, rounds=arguments.rounds
            )
            for comparison in comparisons[-len(PLANTED) * len(WORKLOADS) :]:
                interval, control = comparison.found.interval, comparison.control
                reach = (
                    ""
                    if control is None
                    else f"   A/A {control.ratio:.3f} ({control.low:.3f} .. {control.high:.3f})"
                )
                print(f"run {run + 1:3}  {comparison.case:14} {comparison.planted:16} {comparison.found.word:10} "
                      f"{interval.ratio:.3f} ({interval.low:.3f} .. {interval.high:.3f}){reach}", flush=True)  # fmt: skip
    finally:
        if busy is not None:
            busy.kill()
    for name in PLANTED:
        words = [comparison.found.word for comparison in comparisons if comparison.planted == name]
        print(f"{name:16} " + ", ".join(f"{word} {words.count(word)}" for word in dict.fromkeys(words)))

    reach = [
        np.expm1(statistics.noise([comparison.control]))
        for comparison in comparisons
        if comparison.control is not None
    ]
    if reach:
        print(f"A/A reach: {100 * np.median(reach):.1f} % in the middle, {100 * max(reach):.1f} % at worst")


if __name__ == "__main__":
    main()
