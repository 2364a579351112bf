"""One worker process: started, watched against its limits, and ended together with all that it left behind.

Where the program is ours alone (`may_fork`) a worker is a fork of it, which costs milliseconds: the judge calls no
implementation, so no framework has threads or a GPU yet. Elsewhere (inside pytest, beside JAX or other threads) it is a fresh
interpreter, which costs seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

from qkverify import foreign_text
from qkverify.runs import forking
from qkverify.runs.watch import SIZE, Board

SAID = 2**16  # bytes at the end of what a worker wrote
LARGEST_FILE = 2**32  # bytes that a worker may write into one file
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_forks = False
_open: set[int] = set()  # descriptors of the judge's ends: a worker must not hold those of another
_workers: set[int] = set()
_children_before: set[int] = set()  # of this program, when it began to judge: they are its own


def may_fork() -> None:
    """Say that this program is ours alone, and never calls an implementation itself."""
    global _forks
    _forks = sys.platform == "linux"
    _children_before.update(_children() - _workers)
    if _forks:  # what a worker's children leave behind comes to us, who end it
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def forks() -> bool:
    """Whether a worker is a fork of this program: a lock that another thread holds would stay locked in it."""
    return _forks and threading.active_count() == 1 and forking.is_safe()


def possible() -> bool:
    """Whether workers can be had here: descriptors are handed to them, and their groups are ended by a signal."""
    return os.name == "posix"


class Worker:
    """A process that answers requests. `death` is how it ended, in words, once it has; "" while it lives.

    `threads` is the number of threads of its libraries, if it is not theirs to choose; such a worker is never a fork.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.token = secrets.token_hex(
            8
        )  # begins each of its lines: what a kernel writes into the pipe does not
        self.death = ""
        self.buffer = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        shared = tempfile.TemporaryFile()  # noqa: SIM115  # the mapping keeps it
        shared.truncate(SIZE)
        requests, self.writing = os.pipe()
        self.reading, answers = os.pipe()
        os.set_blocking(self.reading, False)
        theirs = requests, answers, shared.fileno(), self._said.fileno()
        _open.update((self.reading, self.writing))
        forked = threads is None and forks()
        self.process = self._forked(theirs) if forked else self._executed(theirs, threads)
        _workers.add(self.process)
        self.board = Board(shared.fileno())
        self.since = time.monotonic()  # the last request
        for descriptor in (requests, answers):
            os.close(descriptor)
        shared.close()

    def _forked(self, descriptors: tuple[int, int, int, int]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        process = forking.fork()
        if process == 0:
            _serve(self.token, *descriptors)
        return process

    def _executed(self, descriptors: tuple[int, int, int, int], threads: int | None) -> int:
        paths = os.pathsep.join(path for path in sys.path if path)
        limited = {} if threads is None else dict.fromkeys(THREADS, str(threads))
        words = [self.token, *map(str, descriptors)]
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", "qkverify.verification.isolation.process", *words],
            pass_fds=descriptors, stdin=subprocess.DEVNULL,
            env={**os.environ, **limited, "PYTHONPATH": paths},
        )  # fmt: skip
        started.returncode = 0  # we wait for it ourselves, and its object must not
        return started.pid

    def send(self, line: bytes) -> None:
        """A request. One that has died already is noticed by whoever waits for the answer."""
        self.since = time.monotonic()
        data = line + b"\n"
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.writing, data) :]

    def lines(self) -> list[bytes]:
        """The whole lines that have arrived, without the token; others are not its own."""
        with contextlib.suppress(OSError):
            self.buffer += os.read(self.reading, 2**20)
        *whole, self.buffer = self.buffer.split(b"\n")
        mark = self.token.encode() + b" "
        return [line.removeprefix(mark) for line in whole if line.startswith(mark)]

    def has_died(self) -> bool:
        """Whether the process has ended by itself; `death` then says how."""
        if not self.death:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self.death = forking.words_of(os.waitstatus_to_exitcode(status))
        return bool(self.death)

    def held_bytes(self) -> int:
        """The memory that it holds, as Linux says; 0 elsewhere."""
        try:
            pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def said(self) -> str:
        """The end of what it wrote to standard output and error outside of calls, and while it died."""
        size = os.fstat(self._said.fileno()).st_size
        self._said.seek(max(0, size - SAID))
        return foreign_text.escaped(self._said.read().decode("utf-8", "backslashreplace"))

    def left_behind(self) -> list[str]:
        """The commands of the processes that its calls began and that still run."""
        others = {*_in_session(self.process), *_orphans()} - {self.process}
        return [_command(process) for process in sorted(others)]

    def end(self, death: str = "ended by the judge") -> None:
        """End it and its group at once, whatever it does."""
        if not self.has_died():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            self.death = death
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)
        _end_orphans()

    def close(self) -> None:
        """`end`, and give back what the judge holds of it."""
        self.end()
        for descriptor in {self.reading, self.writing} & _open:
            _open.discard(descriptor)
            os.close(descriptor)
        self._said.close()
        self.board.close()
        _workers.discard(self.process)


def _end_orphans() -> None:
    """End what came to us because its own parent is gone: a worker's child with a session of its own."""
    for child in _orphans():
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _orphans() -> list[int]:
    """The living children of the judge that are no workers, and that came to it since it began to judge."""
    return [child for child in sorted(_children() - _workers - _children_before) if not _reaped(child)]


def _children() -> set[int]:
    children: set[int] = set()
    for listed in Path("/proc/self/task").glob("*/children") if _forks else ():
        with contextlib.suppress(OSError):
            children.update(map(int, listed.read_text().split()))
    return children


def _reaped(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except OSError:
        return True


def _in_session(session: int) -> list[int]:
    """The living processes of a session, as Linux lists them."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[3] == str(session) and fields[0] not in "ZX":
                members.append(int(stat.parent.name))
    return members


def _command(process: int) -> str:
    try:
        words = (
            Path(f"/proc/{process}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "backslashreplace")
        )
    except OSError:
        words = ""
    return foreign_text.shown_line(words or f"process {process}", characters=60)


def _serve(token: str, requests: int, answers: int, shared: int, said: int) -> NoReturn:
    """In the worker: nothing of the judge is left but its modules."""
    try:
        _leave_the_judge(said)
        from qkverify.verification.isolation import worker

        worker.serve(token, requests, answers, Board(shared))
    finally:
        os._exit(1)


def _leave_the_judge(said: int) -> None:
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C of the user reaches the judge alone
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):  # where memory ends the system takes the worker first
            Path("/proc/self/oom_score_adj").write_text("1000")
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    atexit._clear()  # what the judge registered is the judge's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor in _open:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open.clear()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    faulthandler.enable(said)


if __name__ == "__main__":
    _serve(sys.argv[1], *map(int, sys.argv[2:6]))
