"""Whether the processor was ours while something was timed on it: the `nvml` of a CPU.

Linux counts, for every thread, the nanoseconds that it was ready to run and waited for a core
(/proc/self/task/*/schedstat), and for every core the time in which the hypervisor ran somebody else ("steal" in
/proc/stat). A thread of ours that waited makes the whole call wait, so the thread that waited longest counts. A
round in which that is more than a hundredth of the time can move a median by more than an A/A control may
differ, and is marked. The ugly spot: steal is counted in ticks of 10 ms over all cores, so a short round may be
marked for a tick that cost it nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from qkverify.timing.nvml import DISTURBING_SHARE, DeviceReading, Monitor

WAITED, STOLEN = "waiting for a core", "taken by the hypervisor"
PROC = Path("/proc")


LONGEST_SETTLE_SECONDS = 0.1
SETTLE_STEP_SECONDS = 0.0005


class Lost(NamedTuple):
    """Seconds lost so far: by each thread while it waited for a core, and to the hypervisor as a mean over cores."""

    waited: dict[str, float]
    stolen: float


class CpuMonitor:
    """A monitor over the kernel's counters in `proc`."""

    def __init__(self, proc: Path = PROC, now: Callable[[], float] = time.perf_counter) -> None:
        self._proc, self._now = proc, now
        self.before()

    def before(self) -> None:
        self._start, self._since = lost(self._proc), self._now()

    def settle(self) -> None:
        """Wait until no other thread of ours is running, `LONGEST_SETTLE_SECONDS` at most.

        Threads of a library keep spinning for a while after its call, in case another comes (OpenBLAS for some 2^26
        cycles): the next call, of another library, would share its cores with them.
        """
        until = self._now() + LONGEST_SETTLE_SECONDS
        while running(self._proc) > 1 and self._now() < until:
            time.sleep(SETTLE_STEP_SECONDS)

    def after(self) -> DeviceReading:
        seconds, end = self._now() - self._since, lost(self._proc)
        # a thread that was not there before has waited all it ever waited in this round
        waited = max(
            (at - self._start.waited.get(thread, 0.0) for thread, at in end.waited.items()), default=0.0
        )
        shares = {WAITED: waited, STOLEN: end.stolen - self._start.stolen}
        names = tuple(name for name, share in shares.items() if share > DISTURBING_SHARE * seconds)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return DeviceReading(seconds, names, mhz=_mhz(), load=load)


def cpu_monitor(proc: Path = PROC) -> Monitor | None:
    """A monitor where the kernel counts what threads wait, else None."""
    return CpuMonitor(proc) if lost(proc).waited else None


def running(proc: Path) -> int:
    """How many threads of ours have or want a core at this moment."""
    count = 0
    for file in proc.glob("self/task/*/stat"):
        with suppress(OSError, IndexError):  # a thread that has just ended
            count += file.read_text().rpartition(")")[2].split()[0] == "R"
    return count


def lost(proc: Path) -> Lost:
    """What was lost so far; nothing where the kernel does not count."""
    waited = {}
    for file in proc.glob("self/task/*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            waited[file.parent.name] = int(file.read_text().split()[1]) / 1e9
    stolen = 0.0
    with suppress(OSError, ValueError, IndexError):
        lines = (proc / "stat").read_text().splitlines()
        ticks = int(lines[0].split()[8])  # cpu user nice system idle iowait irq softirq steal
        cores = sum(line.startswith("cpu") for line in lines[1:])
        stolen = ticks / os.sysconf("SC_CLK_TCK") / cores
    return Lost(waited, stolen)


def _mhz() -> float | None:
    try:
        return float(import_module("psutil").cpu_freq().current)
    except (ImportError, AttributeError, NotImplementedError, OSError):
        return None
