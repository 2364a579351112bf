"""A group of cells timed in a fresh process.

Two processes that run the same code differ by a per cent and more: where memory lies and where threads were
put is drawn once for each. So a run is several sweeps over its groups, each sweep a process of its own, and
what differs between processes enters the intervals (see `statistics`). A kernel that kills its process loses
its own times and nobody else's.

`python -m qkverify.timing.timing_worker` is such a process. It is asked for one group at a time, and finds implementations
again by their file and name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import msgspec

from qkverify import probes
from qkverify.contract import Implementation, adapters
from qkverify.errors import UsageError
from qkverify.results import Cache, Conditions, Direction, Timing
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.clocks import now, restore_clocks
from qkverify.timing.measurement import MeasuredGroup, measure, unmeasured
from qkverify.timing.sampling import FEWEST_ROUNDS
from qkverify.timing.worker_protocol import Child, Died, serve
from qkverify.timing.workloads import Workload

MODULE = "qkverify.timing.timing_worker"
LOST = "while it was timed, "
# OpenBLAS's threads spin for 2^26 cycles after a product (some 25 ms), and everything that is timed next shares its cores with
# them. With 2^22 they still spin from one product of a call to the next. GNU's OpenMP, which torch has, spins 300,000 turns
# (10 ms and more); a tenth of them is as long as OpenBLAS's.
REST = {"OPENBLAS_THREAD_TIMEOUT": "22", "GOMP_SPINCOUNT": "30000"}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a group is to be measured; the words of `measurement.measure`."""

    budget_seconds: float
    limit_seconds: float
    seed: int
    most_rounds: int
    check: bool = True
    twin_of: str = ""
    cache: Cache | None = None
    once: bool = False
    stop_seconds: float | None = None
    sampling_seconds: float | None = None


class NamedCase(msgspec.Struct, frozen=True):
    """A cell in words, with what is known of it: why it must not be timed, its peak bytes, its expected seconds."""

    name: str
    file: str
    function: str
    adapters: str
    workload: Workload
    device: str
    dtype: str
    direction: Direction
    reason: str | None
    peak_bytes: int | None
    expected_seconds: float | None


class Question(msgspec.Struct, frozen=True):
    cells: list[NamedCase]
    terms: Terms


class Answer(msgspec.Struct, frozen=True):
    """`missing` names an implementation that only the asking process has."""

    timings: list[Timing] = []
    twin: Timing | None = None
    call_seconds: list[float | None] = []
    wall_seconds: float = 0.0
    sampling_seconds: float = 0.0
    conditions: Conditions | None = None
    missing: str = ""


class Sweep:
    """One process, for use in a `with`."""

    def __init__(self) -> None:
        self._child = Child(MODULE, **REST)

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.close()

    def measure(
        self,
        cells: Sequence[BenchmarkCase],
        terms: Terms,
        *,
        verified: Mapping[BenchmarkCase, str | None],
        peaks: Mapping[BenchmarkCase, int],
        expected_seconds: Mapping[BenchmarkCase, float],
    ) -> MeasuredGroup:
        """As `measurement.measure`, there. A cell of a process that died says so in its reason.

        An implementation that cannot be found again by its file (one made on the fly) is timed in this process.
        """
        known: dict[str, Any] = {"verified": verified, "peaks": peaks, "expected_seconds": expected_seconds}
        live = [cell for cell in cells if verified.get(cell) is None]
        if not live:
            return _lost(cells, verified, {})
        group_or_reason = self._asked(cells, terms, **known)
        if not isinstance(group_or_reason, str):
            return group_or_reason
        if len(live) < 2:
            return _lost(cells, verified, dict.fromkeys(live, group_or_reason))
        # Who ends the process is found out one by one, and the others are timed without it.
        alone = replace(terms, most_rounds=FEWEST_ROUNDS, check=False, twin_of="")
        deadly = {cell: how for cell in live if isinstance(how := self._asked([cell], alone, **known), str)}
        reasons = {**verified, **{cell: LOST + how for cell, how in deadly.items()}}
        again = (
            self._asked(cells, terms, **{**known, "verified": reasons})
            if len(deadly) < len(live)
            else group_or_reason
        )
        return (
            _lost(cells, verified, dict.fromkeys(live, group_or_reason) | deadly)
            if isinstance(again, str)
            else again
        )

    def _asked(self, cells: Sequence[BenchmarkCase], terms: Terms, **known: Any) -> MeasuredGroup | str:
        """The group measured in the process; how that ended, where no answer came that can be believed."""
        named = [
            _named(cell, *(known[what].get(cell) for what in ("verified", "peaks", "expected_seconds")))
            for cell in cells
        ]
        start = now()
        try:
            answer = msgspec.json.decode(
                self._child.ask(msgspec.json.encode(Question(named, terms))), type=Answer
            )
        except Died as death:
            return str(death)
        except ValueError as error:
            return f"its process gave no answer that can be read: {error}"
        if answer.missing:
            return measure(cells, **known, **asdict(terms))
        claimed, passed = sum(sum(t.seconds) for t in answer.timings), now() - start
        if claimed > passed:
            return (
                f"its process told of {claimed:.3g} s of calls and took {passed:.3g} s, which is not believed"
            )
        seconds = {cell: s for cell, s in zip(cells, answer.call_seconds, strict=True) if s is not None}
        return MeasuredGroup(
            answer.timings,
            answer.twin,
            seconds,
            answer.wall_seconds,
            answer.sampling_seconds,
            answer.conditions,
        )


def _named(cell: BenchmarkCase, reason: str | None, peak: int | None, seconds: float | None) -> NamedCase:
    implementation = cell.implementation
    function = str(getattr(implementation.function, "__qualname__", ""))
    return NamedCase(
        implementation.name,
        implementation.home,
        function,
        adapters.written(implementation.adapters),
        cell.workload,
        cell.device,
        cell.dtype,
        cell.direction,
        reason,
        peak,
        seconds,
    )


def _lost(
    cells: Sequence[BenchmarkCase],
    verified: Mapping[BenchmarkCase, str | None],
    how: Mapping[BenchmarkCase, str],
) -> MeasuredGroup:
    return MeasuredGroup(
        [unmeasured(cell, verified.get(cell) or LOST + how[cell]) for cell in cells], None, {}
    )


def answer(question: bytes) -> bytes:
    """The group of a question, measured here."""
    question_asked = msgspec.json.decode(question, type=Question)
    clocks_set: dict[str, str] = {}
    cells = []
    try:
        for case in question_asked.cells:
            cells.append(_found(case))
            clocks_set[case.file] = clocks_set.get(case.file) or restore_clocks()
    except UsageError as error:
        return msgspec.json.encode(Answer(missing=str(error)))
    pairs = list(zip(cells, question_asked.cells, strict=True))
    measured = measure(
        cells,
        verified={cell: case.reason or clocks_set[case.file] or None for cell, case in pairs},
        peaks={cell: case.peak_bytes for cell, case in pairs if case.peak_bytes is not None},
        expected_seconds={
            cell: case.expected_seconds for cell, case in pairs if case.expected_seconds is not None
        },
        **asdict(question_asked.terms),
    )
    calls = [measured.call_seconds.get(cell) for cell in cells]
    return msgspec.json.encode(
        Answer(
            measured.timings,
            measured.twin,
            calls,
            measured.wall_seconds,
            measured.sampling_seconds,
            measured.conditions,
        )
    )


def _found(case: NamedCase) -> BenchmarkCase:
    implementation = _loaded(case.name, case.file, case.function, case.adapters)
    return BenchmarkCase(case.workload, implementation, case.device, case.dtype, case.direction)


@cache
def _loaded(name: str, file: str, function: str, said: str = "") -> Implementation:
    """Found and called for the first time once in this process, whatever number of groups it is timed in."""
    return probes.reload_implementation(name, file, function, said)


if __name__ == "__main__":
    serve(answer)
