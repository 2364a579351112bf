"""Whether the processor was ours while something was timed on it: the `nvml` of a CPU.

Linux counts, for every thread, the nanoseconds that it was ready to run and waited for a core
(/proc/self/task/*/schedstat), and for every core the time in which the hypervisor ran somebody else ("steal" in
/proc/stat). A thread of ours that waited makes the whole call wait, so the thread that waited longest counts. What
waited for more than a hundredth of its time can be longer by more than an A/A control may differ. The first is
exact to the nanosecond and is read around each sample, which is then taken again; steal is counted in ticks of 10 ms
over all cores, and marks the round. The ugly spot: a short round may be marked for a tick that cost it nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from qkverify.timing.nvml import DISTURBING_SHARE, STOLEN, DeviceReading, Monitor

PROC = Path("/proc")


LONGEST_SETTLE_SECONDS = 0.1
SETTLE_STEP_SECONDS = 0.0005


class CpuMonitor:
    """A monitor over the kernel's counters in `proc`."""

    def __init__(self, proc: Path = PROC, now: Callable[[], float] = time.perf_counter) -> None:
        self._proc, self._now = proc, now
        self.before()
        self.begin_sample()

    def before(self) -> None:
        self._stolen, self._since = stolen(self._proc), self._now()

    def settle(self) -> None:
        """Wait until no other thread of ours is running, `LONGEST_SETTLE_SECONDS` at most.

        Threads of a library keep spinning for a while after its call, in case another comes (OpenBLAS for some 2^26
        cycles): the next call, of another library, would share its cores with them.
        """
        until = self._now() + LONGEST_SETTLE_SECONDS
        while running(self._proc) > 1 and self._now() < until:
            time.sleep(SETTLE_STEP_SECONDS)

    def begin_sample(self) -> None:
        self._waited = waited(self._proc)

    def share_lost(self, seconds: float) -> float:
        """What the thread that waited longest waited, of them. One that was not there before has waited all it ever waited in
        this sample."""
        now = waited(self._proc)
        longest = max((at - self._waited.get(thread, 0.0) for thread, at in now.items()), default=0.0)
        return longest / seconds if seconds > 0 else 0.0

    def after(self) -> DeviceReading:
        seconds, taken = self._now() - self._since, stolen(self._proc) - self._stolen
        names = (STOLEN,) if taken > DISTURBING_SHARE * seconds else ()
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return DeviceReading(seconds, names, mhz=_mhz(), load=load)


def cpu_monitor(proc: Path = PROC) -> Monitor | None:
    """A monitor where the kernel counts what threads wait, else None."""
    return CpuMonitor(proc) if waited(proc) else None


def running(proc: Path) -> int:
    """How many threads of ours have or want a core at this moment."""
    return sum(text.rpartition(")")[2].split()[:1] == ["R"] for text in _of_threads(proc, "stat").values())


def waited(proc: Path) -> dict[str, float]:
    """Seconds that each thread of ours has waited for a core so far; nothing where the kernel does not count."""
    return {
        thread: int(fields[1]) / 1e9
        for thread, text in _of_threads(proc, "schedstat").items()
        if len(fields := text.split()) > 1
    }


def stolen(proc: Path) -> float:
    """Seconds that the hypervisor took so far, as a mean over cores; 0 where the kernel does not count."""
    with suppress(OSError, ValueError, IndexError):
        lines = (proc / "stat").read_text().splitlines()
        ticks = int(lines[0].split()[8])  # cpu user nice system idle iowait irq softirq steal
        cores = sum(line.startswith("cpu") for line in lines[1:])
        return ticks / os.sysconf("SC_CLK_TCK") / cores
    return 0.0


def _of_threads(proc: Path, name: str) -> dict[str, str]:
    """What the kernel writes of each thread of ours. By names and not by pathlib's patterns, which take ten times as long: this
    is read before and after every sample."""
    folder, by_thread = f"{proc}/self/task", dict[str, str]()
    with suppress(OSError):
        for thread in os.listdir(folder):
            with suppress(OSError), open(f"{folder}/{thread}/{name}") as file:  # or the thread has just ended
                by_thread[thread] = file.read()
    return by_thread


def _mhz() -> float | None:
    try:
        return float(import_module("psutil").cpu_freq().current)
    except (ImportError, AttributeError, NotImplementedError, OSError):
        return None
