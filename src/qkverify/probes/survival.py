"""Whether a process survives the first call of a function: one that ends its process would take the judge along.

The call is made in a forked child, which costs milliseconds. Where a fork is not safe (no `os.fork`, a GPU in use, JAX's threads)
nothing is asked. Where the child gives no answer in time, nothing is known, except in a worker (see `watch`), where that is
longer than a call may take. Only the first call is made there.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress

from qkverify.runs import watch

FIRST_CALL = "on the plainest call"
LONGEST = 20.0  # seconds until nothing is known


def death_of(call: Callable[[], object]) -> str:
    """How the process of a call ends, in words, if the call ends it: "was killed by SIGSEGV"; "" if it survives.

    An exception is no death: who makes the call in this process meets it again.
    """
    if not _fork_is_safe():
        return ""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        _call_and_end(call, writing)
    os.close(writing)
    try:
        answered = select.select([reading], [], [], watch.call_seconds or LONGEST)[0]
        survived = bool(answered and os.read(reading, 1))
        if not answered or survived:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(reading)
    if not answered and watch.call_seconds:
        return f"did not come back within {watch.call_seconds:g} s"
    return "" if survived or not answered else _words(os.waitstatus_to_exitcode(status))


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


def _fork_is_safe() -> bool:
    torch = sys.modules.get("torch")
    uses_gpu = torch is not None and bool(torch.cuda.is_initialized())
    return hasattr(os, "fork") and "jax" not in sys.modules and not uses_gpu


def _words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
