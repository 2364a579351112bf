"""What several sweeps over the same groups say together, and where the next one's time is best spent.

Every sweep times each group once, in a process of its own. Their samples are joined, rounds numbered through,
and each keeps the number of its process. After a sweep the scatter of each group is known, so the next goes
where intervals are widest: all groups are brought to one predicted width, the smallest that the time allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np

from qkverify.results import Conditions, Control, Group, Mark, Scatter, Timing
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.measurement import MeasuredGroup, control_of, refused
from qkverify.timing.sampling import FAR, FEWEST_ROUNDS, NO_TIME, PAUSE_SECONDS, SHORT_SECONDS
from qkverify.timing.statistics import ALONE, QUIET, median, paired

NARROW = QUIET / 4  # an interval of a quarter per cent is narrow enough for a band of one
# Half of a 95 % interval of a median of n is about 1.96 x 1.25 / sqrt(n) standard deviations, and the median distance of two
# neighbouring values from each other is 0.954 standard deviations (both of normal numbers).
# A process says most by being another one: where a round of all takes longer than this, a later process takes so few.
LONG_ROUND_SECONDS, LONG_ROUNDS = 0.15, 2
PREPARING_SECONDS = 0.03  # of a cell, about: its inputs, and what is read before and after
REACH = 1.96 * 1.25 / 0.954


class Gathered:
    """All that is known of one group."""

    def __init__(
        self, cells: Sequence[BenchmarkCase], marks: Mapping[BenchmarkCase, list[Mark]] | None = None
    ) -> None:
        self.cells = list(cells)
        self._marks = [(marks or {}).get(cell, []) for cell in self.cells]
        self.timings: list[Timing] = []
        self.twin: Timing | None = None
        self.conditions: list[Conditions] = []
        self.last_process = -1  # that took rounds of it
        self._overhead_seconds = 0.0

    @property
    def rounds(self) -> int:
        """Rounds so far, over all processes."""
        return max((t.rounds[-1] + 1 for t in self._all() if t.rounds), default=0)

    def control(self, scatter: Scatter | None = None) -> Control | None:
        """The A/A control over all sweeps, judged with what all groups say of how processes scatter."""
        mine = next((t for t in self.timings if self._is_twin(t)), None)
        return control_of(mine, self.twin, scatter) if mine and self.twin and mine.seconds else None

    @property
    def pairs(self) -> list[tuple[Timing, Timing]]:
        """Every cell that was timed, and the twin, beside the cell that stands twice."""
        mine = next((t for t in self.timings if self._is_twin(t)), None)
        return (
            [(t, mine) for t in self._all() if t is not mine and t.seconds] if mine and mine.seconds else []
        )

    @property
    def twin_of(self) -> str:
        """The implementation that stands twice."""
        return self.twin.implementation if self.twin else ""

    @property
    def live(self) -> list[BenchmarkCase]:
        """The cells that a further sweep can add to: all at first, then those that were timed in rounds, and are not so slow
        that more of them would decide nothing."""
        if not self.timings:
            return self.cells
        timed = {t.implementation: median(t.seconds) for t in self.timings if _rounds_of(t) >= FEWEST_ROUNDS}
        most = max(SHORT_SECONDS, FAR * min(timed.values(), default=0.0))
        return [cell for cell in self.cells if timed.get(cell.implementation.name, math.inf) <= most]

    @property
    def short_of_rounds(self) -> list[BenchmarkCase]:
        """The cells that have a time, and fewer than the fewest rounds: most of them were called once, by themselves."""
        few = {t.implementation for t in self.timings if t.seconds and _rounds_of(t) < FEWEST_ROUNDS}
        return [cell for cell in self.cells if cell.implementation.name in few]

    @property
    def timed(self) -> list[BenchmarkCase]:
        """The cells that have a time."""
        timed = {t.implementation for t in self.timings if t.seconds}
        return [cell for cell in self.cells if cell.implementation.name in timed]

    @property
    def late(self) -> list[BenchmarkCase]:
        """The cells to which the time did not come."""
        pairs = zip(self.cells, self.timings, strict=False)
        return [cell for cell, t in pairs if not t.seconds and t.reason.startswith(NO_TIME)]

    def add(self, sweep: MeasuredGroup, process: int) -> None:
        """One more sweep's samples of some of the cells."""
        before = self.rounds
        fresh = [_placed(timing, before, process) for timing in sweep.timings]
        twin = None if sweep.twin is None else _placed(sweep.twin, before, process)
        if not self.timings:
            self.timings = [
                msgspec.structs.replace(t, marks=marks) for t, marks in zip(fresh, self._marks, strict=True)
            ]
            self.twin = twin
        else:
            by_name = {timing.implementation: timing for timing in fresh}
            self.timings = [_joined(t, by_name.get(t.implementation)) for t in self.timings]
            self.twin = _joined(self.twin, twin) if self.twin is not None else twin
        if sweep.conditions is not None:
            self.conditions.append(msgspec.structs.replace(sweep.conditions, process=process))
        if self.rounds == before:
            return
        self.last_process = process
        # the first sweep checked outputs too, and began with cells that are not timed any more
        self._overhead_seconds = (
            sweep.wall_seconds - sweep.sampling_seconds if process else self._foretold_overhead()
        )

    def _foretold_overhead(self) -> float:
        """What a further sweep will take beside its rounds, from the first."""
        calls = [median(t.seconds) for t in self._living()]
        return sum(calls) + PREPARING_SECONDS * len(calls)

    def take_peaks(self, peaks: Mapping[BenchmarkCase, int]) -> None:
        """Peak bytes that were measured elsewhere."""
        pairs = zip(self.cells, self.timings, strict=False)
        self.timings = [
            msgspec.structs.replace(t, peak_bytes=peaks.get(cell, t.peak_bytes)) for cell, t in pairs
        ]

    def further_seconds(self, width: float) -> float:
        """Seconds of rounds that are lacking until the widest interval of the group reaches so far only, as a log-ratio: shared
        equally by all that run in them."""
        living = self._living()
        names = {timing.implementation for timing in living}
        lacking = [
            _cost_of(timing) * max(0.0, (REACH * _scatter_of(timing, mine) / width) ** 2 - _rounds_of(timing))
            for timing, mine in self.pairs
            if timing.implementation in names
        ]
        return len(living) * max(lacking, default=0.0)

    def seconds_of(self, rounds: int) -> float:
        """About what so many rounds of all take."""
        return rounds * sum(_cost_of(timing) for timing in self._living())

    @property
    def fewest_rounds(self) -> int:
        """Of a later process, at least."""
        return LONG_ROUNDS if self.seconds_of(1) > LONG_ROUND_SECONDS else FEWEST_ROUNDS

    def rounds_in(self, seconds: float, most: int) -> int:
        """The rounds of a later process that has so many seconds for them; of short calls as many as fit."""
        return (
            max(LONG_ROUNDS, int(seconds / self.seconds_of(1))) if self.fewest_rounds == LONG_ROUNDS else most
        )

    def cost(self, seconds: float) -> float:
        """About what a further sweep takes with so many seconds of rounds."""
        return self._overhead_seconds + seconds

    def _living(self) -> list[Timing]:
        """Those that a further sweep measures, the one that stands twice included."""
        live = {cell.implementation.name for cell in self.live}
        return [t for t in self._all() if t.implementation in live and t.seconds]

    def _is_twin(self, timing: Timing) -> bool:
        return self.twin is not None and timing.implementation == self.twin.implementation

    def _all(self) -> list[Timing]:
        return [*self.timings, *([self.twin] if self.twin else [])]


def allocate(
    groups: Mapping[Group, Gathered],
    budget_seconds: float,
    least_seconds: float = 0.0,
    most_seconds: float = math.inf,
) -> dict[Group, float]:
    """Seconds of rounds for each group in the next sweep: all to one width, the smallest for which the budget suffices.

    None has less than its fewest rounds take, nor one of short rounds less than `least_seconds`; nor more than `most_seconds`
    beyond these.
    """

    def seconds(width: float) -> dict[Group, float]:
        return {
            name: max(
                group.seconds_of(group.fewest_rounds),
                least_seconds if group.fewest_rounds == FEWEST_ROUNDS else 0.0,
                min(most_seconds, group.further_seconds(width)),
            )
            for name, group in groups.items()
        }

    def fits(width: float) -> bool:
        return sum(groups[name].cost(some) for name, some in seconds(width).items()) <= budget_seconds

    widths = np.geomspace(NARROW, 1.0, 60)
    return seconds(next((float(width) for width in widths if fits(float(width))), 1.0))


def _placed(timing: Timing, first_round: int, process: int) -> Timing:
    return msgspec.structs.replace(
        timing,
        rounds=[number if number == ALONE else first_round + number for number in timing.rounds],
        disturbed=[first_round + number for number in timing.disturbed],
        processes=[process] * len(timing.seconds),
    )


def _joined(first: Timing, more: Timing | None) -> Timing:
    """Both sweeps' samples. A cell that failed in the second is not timed at all: it fails at random."""
    if more is None or (not more.seconds and more.reason.startswith(NO_TIME)):
        return first
    if not first.seconds:  # it was put off
        return msgspec.structs.replace(more, marks=first.marks, peak_bytes=first.peak_bytes)
    if not more.seconds:
        return refused(first, more.reason)
    return msgspec.structs.replace(
        first,
        seconds=first.seconds + more.seconds,
        rounds=first.rounds + more.rounds,
        processes=first.processes + more.processes,
        disturbed=first.disturbed + more.disturbed,
    )


def _rounds_of(timing: Timing) -> int:
    """The rounds in which it ran, without calls by itself."""
    return sum(number != ALONE for number in timing.rounds)


def _cost_of(timing: Timing) -> float:
    """About the seconds of one of its samples: with a call that does not count before a short one."""
    call = median(timing.seconds)
    return call * (1 + (call < SHORT_SECONDS)) + PAUSE_SECONDS


def _scatter_of(timing: Timing, other: Timing) -> float:
    """How far neighbouring log-ratios lie apart: a drift of both, or of one process against another, is not in it."""
    mine, theirs, _ = paired(timing, other)
    logs = np.log(np.asarray(mine) / np.asarray(theirs))
    return float(np.median([abs(b - a) for a, b in pairwise(logs)])) if len(logs) > 1 else 0.0
