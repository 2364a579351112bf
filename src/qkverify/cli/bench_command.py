"""`qkverify bench`: the laws first, then times with what is known beside them, into a results file."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from qkverify.cli import console_progress, full_run
from qkverify.contract import registry
from qkverify.errors import UsageError
from qkverify.results import (
    Cache,
    Ceiling,
    Direction,
    Record,
    RunStart,
    Timing,
    Verdict,
    Writer,
    of_kind,
    read,
)
from qkverify.results.one_run import alone_in
from qkverify.timing.benchmark_cases import DIRECTIONS, BenchmarkCase, not_offered
from qkverify.timing.comparison import Side, side_of
from qkverify.timing.grid import run_grid
from qkverify.timing.workloads import Workload, plain_grid, resolve, small_grid
from qkverify.verification.checking import Cell, group_of, plan
from qkverify.verification.isolation.planning import rehearse

PASSES: dict[str, Direction] = {"forward": "forward", "backward": "backward", "both": "forward+backward"}
LAWS_SHARE = 0.4  # of the budget, at most
LEAST_LAWS_SECONDS = 10.0  # in less their processes have hardly begun
LEAST_SECONDS = 1.0  # for times, however long the laws took
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class BenchRequest(NamedTuple):
    """What a user asked for, in words; empty is everything."""

    targets: Sequence[str]
    workloads: Sequence[str]
    passes: Sequence[str]
    dtypes: Sequence[str]
    devices: Sequence[str]
    budget: str
    processes: int
    rounds: int
    laws: str
    cache: str
    lawful_only: bool = False


class BenchResult(NamedTuple):
    """What was measured, and the file in which it is."""

    path: Path
    side: Side
    ceilings: list[Ceiling]
    all_timings: list[Timing]  # those without samples too


def run(request: BenchRequest, path: Path, since: float | None = None) -> BenchResult:
    """Check and time what was asked for, appending to `path`. The budget counts from `since`, by time.monotonic(); now, without.
    Raises UsageError where nothing of it exists."""
    start, seconds = time.monotonic() if since is None else since, seconds_of(request.budget)
    if request.lawful_only and request.laws == "none":
        raise UsageError(
            "--lawful-only needs the verdicts of the laws, and --laws none checks none: use only one of the two"
        )
    cases = resolve(request.workloads) if request.workloads else []
    rehearse([target for target in request.targets if group_of(target)], request.devices, request.dtypes)
    planned = plan(request.targets, request.devices, request.dtypes)
    cells = [cell for cell in planned.cells if cell.implementation.operation == "attention"]
    if not cells:
        reasons = [f"{name} on {where}: {why}" for (name, where), why in planned.unavailable.items()]
        raise UsageError(
            "\n  ".join(
                ["no implementation of attention can be timed here with these dtypes and devices", *reasons]
            )
        )
    named = _named(cells, request.targets)
    cases = cases or _runnable_by_all(named)
    directions = tuple(_pass(name) for name in request.passes) or _offered_by_all(named)
    with Writer(path) as writer, alone_in(path, path):
        writer.append(full_run.run_start(request.laws))
        verdicts = None if request.laws == "none" else _verified(writer, cells, request.laws, seconds)
        with console_progress.progress("timing") as advance:
            run_grid(
                writer,
                full_run.harmless(list(dict.fromkeys(cell.implementation for cell in cells)), verdicts or ()),
                budget_seconds=max(LEAST_SECONDS, seconds - (time.monotonic() - start)),
                progress=advance,
                verdicts=verdicts,
                workloads=(lambda device: cases) if cases else small_grid,
                devices=list(dict.fromkeys(cell.device for cell in cells)),
                dtypes=request.dtypes,
                directions=directions,
                processes=request.processes,
                most_rounds=request.rounds,
                cache=_cache(request.cache),
                lawful_only=request.lawful_only,
            )
    records = last_run(read(path))
    return BenchResult(path, side_of(records), of_kind(records, Ceiling), of_kind(records, Timing))


def _named(cells: Sequence[Cell], targets: Sequence[str]) -> list[Cell]:
    """The cells of a person's own functions, if such were named: what is timed is chosen for them, unless it is said."""
    own = {
        implementation.name
        for target in targets
        if group_of(target)
        for implementation in registry.find(target)
    }
    return [cell for cell in cells if cell.implementation.name in own]


def _runnable_by_all(named: Sequence[Cell]) -> list[Workload]:
    """Other cases than the small grid's, where an own function can run none of its prompts; else none."""
    for cell in named:
        prompts = [case for case in small_grid(cell.device) if case.sizes["Q"] > 1]
        lacking = [
            not_offered(BenchmarkCase(case, cell.implementation, cell.device, cell.dtype, "forward"))
            for case in prompts
        ]
        if all(lacking):
            plain = plain_grid()
            print(
                f"{cell.implementation.name} cannot run the usual workloads ({lacking[0]}), so all are timed on "
                f"{', '.join(case.name for case in plain)}; --workload chooses others"
            )
            return plain
    return []


def _offered_by_all(named: Sequence[Cell]) -> tuple[Direction, ...]:
    """The directions to time: forward alone where an own function has no gradients."""
    for cell in named:
        if "gradients" not in cell.implementation.offers:
            print(
                f"{cell.implementation.name} offers no gradients, so only the forward pass is timed; --pass chooses"
            )
            return ("forward",)
    return DIRECTIONS


def _verified(writer: Writer, cells: Sequence[Cell], profile: str, seconds: float) -> list[Verdict]:
    """The verdicts of the laws, within their part of the budget; what it had no room for is said."""
    laws = full_run.unfinished(cells, [])
    most, every = LAWS_SHARE * seconds, sum(map(len, laws.values()))
    if most < LEAST_LAWS_SECONDS:
        print(f"budget {seconds:g} s: too short for the {every} laws ({profile}), all of it is for times; "
              "`qkverify verify` checks them")  # fmt: skip
        return []
    print(
        f"budget {seconds:g} s: at most {most:.0f} s for the laws ({profile}), the rest for times (--laws none: all of it)"
    )
    verdicts = full_run.verify(writer, laws, profile, budget_seconds=most)
    if len(verdicts) < every:
        print(f"laws: {len(verdicts)} of {every} were checked within the time; `qkverify verify` checks all")
    return verdicts


def last_run(records: Sequence[Record]) -> list[Record]:
    """The records of the file's last run."""
    starts = [index for index, record in enumerate(records) if isinstance(record, RunStart)]
    return list(records[starts[-1] if starts else 0 :])


def names_of(candidate: str, baseline: str, run: Side) -> tuple[str, str]:
    """The names under which two targets were timed. Raises UsageError where a target means several."""
    known = {t.implementation for t in run.timings}
    return tuple(name if name in known else _single(name) for name in (candidate, baseline))  # type: ignore[return-value]


def seconds_of(text: str) -> float:
    """ "90", "90s", "5m" and "1h" in seconds. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", text.strip())
    if not match or not float(match[1]):
        raise UsageError(f"{text!r} is not a time; write 90s, 5m or 1h")
    return float(match[1]) * UNITS[match[2]]


def _pass(name: str) -> Direction:
    if name not in PASSES:
        raise UsageError.unknown("direction", name, PASSES)
    return PASSES[name]


def _cache(name: str) -> Cache | None:
    """None leaves it to the clock: cold for events on a GPU, hot on a CPU."""
    if name not in ("", "hot", "cold"):
        raise UsageError.unknown("cache", name, ("hot", "cold"))
    return cast("Cache | None", name or None)


def _single(target: str) -> str:
    names = [implementation.name for implementation in registry.find(target)]
    if len(names) > 1:
        raise UsageError(f"{target} names several implementations; choose one to compare: {', '.join(names)}")
    return names[0]


def bench_file() -> Path:
    """Where the samples go if no file is named."""
    from qkverify.counterexamples import store

    return store.ignored(store.FOLDER) / "bench.jsonl"
