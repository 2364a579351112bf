"""What the device did while it was timed: clock rate, temperature, power, and what held it back.

    monitor = monitor_for("cuda")       # None where nothing can be read
    monitor.before()
    ...                                 # one round of samples
    reading = monitor.after()
    if reading.throttled: ...           # mark the round, count it, take it again

A GPU is asked through NVML (the package nvidia-ml-py, module `pynvml`), and through nvidia-smi where that is
not installed. Both say which reasons lower the clocks at the moment; NVML also counts the nanoseconds that
power and temperature took, so a slowdown that came and went within the round is seen as well. An idle GPU and
clocks that somebody set on purpose are no throttling: they are the device's state, and stay as they are.

A CPU is watched by `scheduling`, through the same door.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, Protocol

# Bits of nvmlClocksEventReasons (nvml.h). Not among them, because they are no throttling: 0x1 idle, 0x2 application
# clocks, 0x100 display clocks.
THROTTLES: Mapping[int, str] = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# nvmlPerfPolicyType_t: what takes performance away, with a counter of nanoseconds each.
COUNTERS: Mapping[str, str] = {
    "NVML_PERF_POLICY_POWER": "power cap",
    "NVML_PERF_POLICY_THERMAL": "thermal slowdown",
    "NVML_PERF_POLICY_SYNC_BOOST": "sync boost",
    "NVML_PERF_POLICY_BOARD_LIMIT": "board limit",
    "NVML_PERF_POLICY_RELIABILITY": "reliability limit",
}
# Of a round's time: what can move its median by more than the width within which two halves of an A/A control must agree.
DISTURBING_SHARE = 0.01
WAITED, STOLEN = "waiting for a core", "taken by the hypervisor"  # what holds a CPU back
COMMAND_SECONDS = 10  # a driver that hangs must not hang the run


@dataclass(frozen=True)
class DeviceReading:
    """One round. `throttled` names what held the device back, and is empty for a good round; the facts are of its end.

    `mhz` is the clock rate, `load` the processes that wanted a core in the last minute; None is what this device
    does not tell.
    """

    seconds: float
    throttled: tuple[str, ...] = ()
    mhz: float | None = None
    celsius: float | None = None
    watts: float | None = None
    load: float | None = None


class Monitor(Protocol):
    """Watches one device: `before` and `after` a round, and within it each sample.

    `settle` returns when the device is at rest; `share_lost` says how much of the sample of so many seconds that began at the
    last `begin_sample` was others'. More than `DISTURBING_SHARE` is too much.
    """

    def before(self) -> None: ...

    def settle(self) -> None: ...

    def begin_sample(self) -> None: ...

    def share_lost(self, seconds: float) -> float: ...

    def after(self) -> DeviceReading: ...


class State(NamedTuple):
    """A GPU at one moment: bits of `THROTTLES`, facts, and nanoseconds lost so far by their cause."""

    reasons: int | None = None
    mhz: float | None = None
    celsius: float | None = None
    watts: float | None = None
    lost_ns: Mapping[str, int] = {}


class GpuMonitor:
    """A monitor over anything that gives a GPU's state."""

    def __init__(self, look: Callable[[], State], now: Callable[[], float] = time.perf_counter) -> None:
        self._look, self._now = look, now
        self.before()

    def before(self) -> None:
        self._start, self._since = self._look(), self._now()

    def settle(self) -> None:
        """Nothing to do: a GPU is waited for by its clock, which synchronises before each sample."""

    def begin_sample(self) -> None:
        """Nothing to do: what slows a GPU does so for longer than a sample, and is told by the round."""

    def share_lost(self, seconds: float) -> float:
        return 0.0

    def after(self) -> DeviceReading:
        seconds, end = self._now() - self._since, self._look()
        names = [
            name
            for bit, name in THROTTLES.items()
            if any((state.reasons or 0) & bit for state in (self._start, end))
        ]
        for name, lost in end.lost_ns.items():
            share = (lost - self._start.lost_ns.get(name, lost)) / 1e9 / seconds if seconds else 0.0
            if share > DISTURBING_SHARE:
                names.append(name)
        return DeviceReading(seconds, tuple(dict.fromkeys(names)), end.mhz, end.celsius, end.watts)


def monitor_for(device: str) -> Monitor | None:
    """A monitor of "cuda" or "cpu", or None where this machine tells nothing."""
    if device == "cpu":
        from qkverify.timing.scheduling import cpu_monitor

        return cpu_monitor()
    look = through_nvml() or through_nvidia_smi()
    return None if look is None else GpuMonitor(look)


def through_nvml() -> Callable[[], State] | None:
    """Looks at the GPU in use through NVML; None where pynvml is not installed or finds no driver."""
    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
        uuid = gpu_uuid()
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else nvml.nvmlDeviceGetHandleByIndex(0)
    except ImportError:
        return None
    except nvml.NVMLError:
        return None

    def told(function: str, *facts: Any) -> Any:
        """What a call answers, None where this device, driver or version of the package does not know it."""
        try:
            return getattr(nvml, function)(gpu, *facts)
        except (AttributeError, nvml.NVMLError):
            return None

    def look() -> State:
        reasons = told("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # the name before driver 535
            reasons = told("nvmlDeviceGetCurrentClocksThrottleReasons")
        milliwatts = told("nvmlDeviceGetPowerUsage")
        violations = {
            name: told("nvmlDeviceGetViolationStatus", getattr(nvml, constant))
            for constant, name in COUNTERS.items()
            if hasattr(nvml, constant)
        }
        return State(
            reasons=reasons,
            mhz=told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            celsius=told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            watts=None if milliwatts is None else milliwatts / 1e3,
            lost_ns={
                name: int(violation.violationTime)
                for name, violation in violations.items()
                if violation is not None
            },
        )

    return look


def through_nvidia_smi() -> Callable[[], State] | None:
    """Looks at the GPU in use through the driver's own command; None where it is not there or fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    for reasons in ("clocks_event_reasons", "clocks_throttle_reasons"):  # the second before driver 535
        fields = f"clocks.sm,temperature.gpu,power.draw,{reasons}.active"
        if _asked(fields) is not None:
            return partial(_smi_state, fields)
    return None


def _smi_state(fields: str) -> State:
    return _asked(fields) or State()


def _asked(fields: str) -> State | None:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    uuid = gpu_uuid()
    if uuid:
        command.insert(1, f"--id={uuid}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    words = [word.strip() for word in done.stdout.partition("\n")[0].split(",")]
    if len(words) != 4:
        return None
    mhz, celsius, watts = (_number(word) for word in words[:3])
    return State(_bits(words[3]), mhz, celsius, watts)


def gpu_uuid() -> str | None:
    """The UUID of the GPU that torch computes on, where torch is loaded and tells: the driver counts GPUs differently."""
    torch: Any = sys.modules.get("torch")
    try:
        uuid = str(
            torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        )  # torch has a type of its own for it
    except (AttributeError, RuntimeError, AssertionError):  # not loaded, too old, or without CUDA
        return None
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None


def _bits(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None
