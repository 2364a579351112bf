"""Whether a process survives the first call of a function: one that ends its process would take the judge along.

The call is made in a forked child, which costs milliseconds. Where a fork is not safe (no `os.fork`, a GPU in use, JAX's threads)
nothing is asked. Where the child gives no answer in time, nothing is known: threads that the module began are missing there, and
a call may wait for them. Only the first call is made there.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress

from qkverify.runs import forking, watch

FIRST_CALL = "on the plainest call"
LONGEST = 20.0  # seconds until nothing is known


def death_of(call: Callable[[], object]) -> str:
    """How the process of a call ends, in words, if the call ends it: "was killed by SIGSEGV"; "" if it survives.

    An exception is no death: who makes the call in this process meets it again.
    """
    if not forking.is_safe():
        return ""
    reading, writing = os.pipe()
    child = forking.fork()
    if child == 0:
        _call_and_end(call, writing)
    os.close(writing)
    try:
        longest = min(LONGEST, watch.call_seconds or LONGEST)
        answered = select.select([reading], [], [], longest)[0]
        survived = bool(answered and os.read(reading, 1))
        if not answered or survived:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(reading)
    return "" if survived or not answered else forking.words_of(os.waitstatus_to_exitcode(status))


def _call_and_end(call: Callable[[], object], writing: int) -> None:
    """In the child: nothing of it is seen but one byte if the call comes back."""
    try:
        watch.watched_by(None)
        faulthandler.disable()  # its report would be the only thing seen
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silent, stream)
        with suppress(BaseException):
            call()
        os.write(writing, b"1")
    finally:
        os._exit(0)
