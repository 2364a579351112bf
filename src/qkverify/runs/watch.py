"""What a worker process shows of itself while it calls an implementation: since when a call runs, and on which arguments.

The judge reads it from shared memory, so it also learns of a call that never comes back. Outside of a worker nothing is shown.
The arguments are pickled, because they are written before every example and that is the fastest way (90 us); the judge never
unpickles them. It hands them to another worker, which does with them what an implementation may do anyway.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

SIZE = 2**20  # bytes
# Calls so far, whether one runs, since when, bytes of the arguments, calls from which a second process came back.
_FIELDS = struct.Struct("=QQdQQ")


class Board:
    """The shared memory of a judge and its worker."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        self._calls = 0

    def show(self, *, calling: bool) -> None:
        """In the worker: a call begins, or something else does."""
        self._calls += calling
        struct.pack_into("=QQd", self._memory, 0, self._calls, calling, time.monotonic())

    def show_arguments(self, arguments: Mapping[str, Any]) -> None:
        """In the worker: what the calls from now on are about. What cannot be shown is left out."""
        try:
            data = pickle.dumps(arguments, protocol=5)
        except Exception:
            data = b""
        if len(data) > SIZE - _FIELDS.size:
            data = b""
        struct.pack_into("=Q", self._memory, 24, 0)
        self._memory[_FIELDS.size : _FIELDS.size + len(data)] = data
        struct.pack_into("=Q", self._memory, 24, len(data))

    def read(self) -> tuple[int, bool, float]:
        """In the judge: the number of calls so far, whether one runs, and since when (by time.monotonic())."""
        calls, calling, since, _, _ = _FIELDS.unpack_from(self._memory)
        return calls, bool(calling), since

    def show_fork(self) -> None:
        """In a process that a call of the worker forked, and that came back from that call."""
        struct.pack_into("=Q", self._memory, 32, 1)

    def forked(self) -> bool:
        """In the judge: whether a call came back in a second process since this was asked last."""
        forked = bool(_FIELDS.unpack_from(self._memory)[4])
        struct.pack_into("=Q", self._memory, 32, 0)
        return forked

    def arguments(self) -> bytes:
        """In the judge: the arguments that were shown last, pickled; empty if none were."""
        length = min(_FIELDS.unpack_from(self._memory)[3], SIZE - _FIELDS.size)
        return self._memory[_FIELDS.size : _FIELDS.size + length]

    def close(self) -> None:
        self._memory.close()


_board: Board | None = None
_process = 0
call_seconds: float | None = None  # in a worker, what a call may take


def watched_by(board: Board | None) -> None:
    """From now on this process is a worker with this board; without one it is watched by nobody."""
    global _board, _process
    _board, _process = board, os.getpid()


def is_worker() -> bool:
    """Whether a judge in another process watches this one."""
    return _board is not None


def is_users_interrupt(error: BaseException) -> bool:
    """Whether an error is Ctrl-C. In a worker it is not: it has a session of its own, which no Ctrl-C reaches."""
    return isinstance(error, KeyboardInterrupt) and not is_worker()


@contextlib.contextmanager
def call() -> Iterator[None]:
    """Around whatever runs code of an implementation. A process that it forked ends here."""
    if _board is None:
        yield
        return
    _board.show(calling=True)
    try:
        yield
    finally:
        if os.getpid() != _process:
            _board.show_fork()
            os._exit(0)
        _board.show(calling=False)


def example(arguments: Mapping[str, Any]) -> None:
    """An example of a law begins."""
    if _board is not None:
        _board.show_arguments(arguments)
        _board.show(calling=False)


def last_arguments(data: bytes) -> Mapping[str, Any]:
    """What `Board.arguments` gave, in a worker."""
    arguments: Mapping[str, Any] = pickle.loads(data) if data else {}
    return arguments
