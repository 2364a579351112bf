"""What was measured: times, ceilings, controls, conditions, accuracy."""

from __future__ import annotations

from typing import Literal

import msgspec

Direction = Literal["forward", "backward", "forward+backward"]


Clock = Literal["host", "events", "thread"]


Cache = Literal["hot", "cold"]


Group = tuple[str, str, str, str]  # case, direction, device, dtype


class Mark(msgspec.Struct, frozen=True):
    """What is known against an implementation whose time it stands beside: a recorded finding, or laws that it breaks.

    `sentence` says what is wrong, `folder` where a finding is told in full. `bars` says whether the timed workload falls
    under it: then there is no time.
    """

    kind: Literal["finding", "broken", "not verified"]
    laws: list[str]
    sentence: str
    folder: str = ""
    bars: bool = False


class Timing(msgspec.Struct, frozen=True, tag="timing"):
    """One cell: `seconds[i]` is the time of one call, measured in round `rounds[i]` by process `processes[i]`.

    Rounds are numbered through over all processes; files from before there were several name no process. Round -1 is
    no round: what is far slower than the others is called once, by itself. In
    the `disturbed` rounds the device was held back (see Conditions). An untimed cell has no seconds, and a
    reason. `flops` and `bytes` are of one call; `peak_bytes` is the memory above the inputs at its highest,
    where it was measured. `marks` is what laws and findings say against the implementation.
    """

    case: str
    sizes: dict[str, int]
    causal: bool
    options: str
    implementation: str
    device: str
    dtype: str
    direction: Direction
    clock: Clock
    seconds: list[float]
    rounds: list[int]
    flops: int
    bytes: int
    peak_bytes: int | None = None
    margin: float | None = None
    verified: bool = False
    reason: str = ""
    processes: list[int] = []
    disturbed: list[int] = []
    cache: Cache = "hot"
    marks: list[Mark] = []

    @property
    def group(self) -> Group:
        """What was timed against each other."""
        return self.case, self.direction, self.device, self.dtype


class OperationTiming(msgspec.Struct, frozen=True, tag="operation timing", kw_only=True):
    """One implementation of another operation than attention, forward, at one size ("short", "long").

    `seconds[i]` is the time of one call, measured in round `rounds[i]`, in which all implementations of the operation took their
    turn. `margin` is that of the timed call's own result. Without seconds, `reason` says why.
    """

    operation: str
    case: str
    sizes: dict[str, int]
    implementation: str
    device: str
    dtype: str
    clock: Clock
    seconds: list[float]
    rounds: list[int]
    margin: float | None = None
    reason: str = ""


class Ceiling(msgspec.Struct, frozen=True, tag="ceiling"):
    """What this device was seen to reach: `rate` in FLOP/s (matmul) or bytes/s (copy)."""

    device: str
    dtype: str
    what: Literal["matmul", "copy"]
    rate: float
    seconds: list[float] = []


class Scatter(msgspec.Struct, frozen=True):
    """How the median log-ratio of one process scatters, learnt from all cases of a run (see `timing.moderation`): its variance is
    `factor` times that of its rounds and the squared `luck` of processes, known as well as from so many `degrees` of freedom."""

    luck: float
    factor: float
    degrees: float


class Control(msgspec.Struct, frozen=True, tag="control"):
    """The A/A control: one implementation timed under two names. A quiet machine gives a ratio near one.

    `scatter` is what all cases of the run together say of its processes; None in runs of few cases, or of one process, and in
    files from before it was recorded.
    """

    case: str
    implementation: str
    device: str
    dtype: str
    ratio: float
    low: float
    high: float
    direction: Direction = "forward"
    processes: int = 1
    scatter: Scatter | None = None

    @property
    def group(self) -> Group:
        """The cells that were timed in the same rounds."""
        return self.case, self.direction, self.device, self.dtype


class Conditions(msgspec.Struct, frozen=True, tag="conditions", kw_only=True):
    """The device while one group was timed by one process: `disturbed` counts rounds by what held it back.

    Clock rates in MHz, temperature in degrees Celsius, power in watts, the load as the mean number of processes
    that wanted a core; None is what the device does not tell.
    """

    case: str
    direction: Direction
    device: str
    dtype: str
    process: int
    rounds: int
    disturbed: dict[str, int] = {}
    mhz_low: float | None = None
    mhz_high: float | None = None
    celsius: float | None = None
    watts: float | None = None
    load: float | None = None


class Accuracy(msgspec.Struct, frozen=True, tag="accuracy"):
    """Errors on ordinary numbers. `positive` is the share of errors above zero; `lean` the mean error away from zero in units
    of the last place, with its standard error; the ratios divide the root mean square and the largest error by those of a
    textbook that rounds every operation to the dtype. `bits_lost` is the binary logarithm of the root mean square error over
    that of the exact result rounded to the dtype; None where it was not measured."""

    implementation: str
    device: str
    dtype: str
    elements: int
    positive: float | None
    lean: float
    lean_error: float
    ratio: float | None
    worst_ratio: float | None
    bits_lost: float | None = None


class TimingSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="timing summary"):
    """A timed cell of an earlier run without its samples: the median of one call in seconds, and the interval in which it lies
    with 95 %, from so many samples; the rest as in Timing. Written by `history`."""

    case: str
    implementation: str
    device: str
    dtype: str
    direction: Direction
    median_seconds: float
    low_seconds: float
    high_seconds: float
    samples: int
    flops: int
    bytes: int
    clock: Clock = "host"
    peak_bytes: int | None = None
    margin: float | None = None
