"""How long a call of an implementation may take, and how much memory its process may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qkverify.errors import UsageError

CALL_SECONDS = 60.0  # the problems of laws are small: calls take milliseconds, or seconds in an interpreter
COMPILED = 10  # times as long for a call that may wait for a compiler
QUIET = 5  # times as long between two calls: generating a problem, the reference, the search for a diagnosis
LOADING = 10  # times as long until the first call: an import may build an extension
LEAST_SECONDS = (
    60.0  # of what the judge's own code does in a worker: loading torch may take ten on a busy machine
)
END_SECONDS = 10.0  # at most, for handlers of atexit, threads and children, once everything is checked
MEMORY_SHARE = 0.5  # of what is available when a run begins
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """Of one worker; `memory_bytes` is None where the system does not say how much a process holds."""

    call_seconds: float = CALL_SECONDS
    memory_bytes: int | None = None

    def of_call(self, *, compiled: bool) -> float:
        """Seconds for one call."""
        return self.call_seconds * (COMPILED if compiled else 1)

    @property
    def of_end(self) -> float:
        """Seconds until a process that was told to end has ended, with all its children."""
        return min(END_SECONDS, self.call_seconds)

    def of_silence(self, *, compiled: bool, loading: bool) -> float:
        """Seconds in which no call and no example begins or ends."""
        seconds = LOADING * self.call_seconds if loading else QUIET * self.of_call(compiled=compiled)
        return max(seconds, LEAST_SECONDS)


def limits(call_seconds: float | None = None, memory: str = "", jobs: int = 1) -> Limits:
    """The limits that a user asks for; without `memory` half of what is available now, divided among the workers.

    Raises UsageError for a size that is none.
    """
    if memory:
        return Limits(call_seconds or CALL_SECONDS, size_of(memory))
    available = _available_bytes()
    share = None if available is None else int(available * MEMORY_SHARE / max(jobs, 1))
    return Limits(call_seconds or CALL_SECONDS, share)


def size_of(text: str) -> int:
    """Bytes of "4G", "512 MiB" or "1000000". Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size <= 0:
        raise UsageError(f"--memory {text}: not a size; write bytes, or 512M, 4G")
    return size


def _available_bytes() -> int | None:
    """What Linux says is available, within the limit of the control group; None elsewhere."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 2**10
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        highest, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(available, int(highest) - int(used))
    except (OSError, ValueError):  # "max", or no such group
        return available
