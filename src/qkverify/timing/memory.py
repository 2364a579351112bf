"""Peak memory of a call, measured in a run of its own.

CPU. The resident memory of a fresh process: at its highest during the call, less what it held before, with
the inputs in place and after one call on a short problem has loaded what is loaded once. Fresh, because an
allocator that keeps freed pages hides the next call's need. Starting Python and torch for every call would
cost seconds, so one server process imports everything, computes nothing, and forks a child for each
measurement. Linux forgets the highest mark on request (/proc/self/clear_refs); elsewhere ru_maxrss only says
by how much a new record was set, which is zero for calls that need less than their preparation, and None is
reported then.

CUDA. What torch's allocator handed out at its highest, less what it had handed out before; in this process.

The server speaks JSON lines: a request on its input, an answer on its output. `python -m qkverify.timing.memory`
starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from qkverify import probes
from qkverify.contract import Implementation, adapters, registry
from qkverify.errors import UsageError
from qkverify.results import Direction
from qkverify.runs import forking
from qkverify.timing.worker_protocol import Child, Died, serve
from qkverify.timing.workloads import Workload

LIMIT_SECONDS = 20
SHORT = 128  # length of the problem of the first call
STATUS = Path("/proc/self/status")


class Request(msgspec.Struct, frozen=True):
    """What one child is asked to measure; the first four say where the implementation is found again."""

    name: str
    file: str
    function: str
    adapters: str
    workload: Workload
    dtype: str
    direction: Direction


class Server(Child):
    """The process that forks one child per measurement, for use in a `with`. Without fork it gives None."""

    def __init__(self) -> None:
        super().__init__("qkverify.timing.memory")

    def peak_bytes(
        self,
        implementation: Implementation,
        workload: Workload,
        device: str,
        dtype: str,
        direction: Direction,
    ) -> int | None:
        """Peak bytes of one call above its inputs; None where it cannot be measured or the call fails."""
        if device == "cuda":
            with contextlib.suppress(Exception):  # the timing of the same cell meets it again and reports it
                return cuda_peak_bytes(implementation, workload, dtype, direction)
            return None
        if not hasattr(os, "fork"):
            return None
        function = str(getattr(implementation.function, "__qualname__", ""))
        request = Request(
            implementation.name,
            implementation.home,
            function,
            adapters.written(implementation.adapters),
            workload,
            dtype,
            direction,
        )
        try:
            return msgspec.json.decode(self.ask(msgspec.json.encode(request)), type=int | None)
        except (Died, ValueError):  # the timing of the same cell meets its like
            return None


def cuda_peak_bytes(
    implementation: Implementation, workload: Workload, dtype: str, direction: Direction
) -> int | None:
    """Peak of torch's CUDA allocator above its inputs, in bytes; None for another framework."""
    if implementation.arrays != "torch":
        return None
    import torch

    call = _prepared(implementation, workload, "cuda", dtype, direction)
    _prepared(implementation, _short(workload), "cuda", dtype, direction)()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return int(peak)


def host_peak_bytes(call: Callable[[], Any]) -> int | None:
    """How far one call raises this process's resident memory above where it is now."""
    _give_back_freed()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark is now the present size
    except OSError:
        before = _highest_ever()
        result = call()
        grown = _highest_ever() - before
        del result
        return grown or None
    before = _status_bytes("VmRSS")
    result = call()
    grown = _status_bytes("VmHWM") - before
    del result
    return max(grown, 0)


def _give_back_freed() -> None:
    """What the allocator kept of freed memory goes back to the system: the call must not live on it."""
    with contextlib.suppress(AttributeError, OSError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def answer(question: bytes) -> bytes:
    """The peak of one request, from a child of its own."""
    request = msgspec.json.decode(question, type=Request)
    try:
        implementation = registry.reload_implementation(
            request.name, request.file, request.function, request.adapters
        )  # imported here, once: every later child has it
    except UsageError:
        return msgspec.json.encode(None)
    return msgspec.json.encode(_from_child(request, implementation))


def _from_child(request: Request, implementation: Implementation) -> int | None:
    reading, writing = os.pipe()
    child = forking.fork()
    if child == 0:
        os.close(reading)
        _measure(request, implementation, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return msgspec.json.decode(answer or b"null", type=int | None)


def _measure(request: Request, implementation: Implementation, writing: int) -> None:
    """The child's life: measure, write, end at once; the alarm ends it where the call does not return."""
    answer: int | None = None
    try:
        signal.alarm(LIMIT_SECONDS)
        implementation = probes.fitted(
            implementation
        )  # its first calls are made here: a process that has computed should not be forked
        call = _prepared(implementation, request.workload, "cpu", request.dtype, request.direction)
        _prepared(implementation, _short(request.workload), "cpu", request.dtype, request.direction)()
        answer = host_peak_bytes(call)
    except Exception:  # the timing of the same cell meets the same error and reports it
        answer = None
    os.write(writing, msgspec.json.encode(answer))
    os._exit(0)


def _prepared(
    implementation: Implementation, workload: Workload, device: str, dtype: str, direction: Direction
) -> Any:
    from qkverify.runs.run import Run

    return Run(implementation, device, dtype).callable(workload.problem(dtype), direction)


def _short(workload: Workload) -> Workload:
    lengths = workload.key_lengths
    return dataclasses.replace(
        workload,
        queries=min(workload.queries, SHORT),
        keys=min(workload.sizes["K"], SHORT),
        key_lengths=None if lengths is None else tuple(min(length, SHORT) for length in lengths),
    )


def _status_bytes(field: str) -> int:
    """VmRSS (resident now) or VmHWM (highest mark) of this process."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def _highest_ever() -> int:
    import resource  # not on Windows, where nothing asks for it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    serve(answer)
