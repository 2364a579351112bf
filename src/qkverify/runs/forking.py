"""Forks of this process: whether they are safe, and how a process ended."""

from __future__ import annotations

import os
import signal
import sys
import warnings


def is_safe() -> bool:
    """Whether a fork of this process can go on: there is `os.fork`, no GPU is in use, and JAX's threads are not here."""
    torch = sys.modules.get("torch")
    uses_gpu = torch is not None and bool(torch.cuda.is_initialized())
    return hasattr(os, "fork") and "jax" not in sys.modules and not uses_gpu


def fork() -> int:
    """As `os.fork`, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        return os.fork()


def words_of(code: int) -> str:
    """How a process ended, by `os.waitstatus_to_exitcode`: "ended with exit code 0", "was killed by SIGSEGV"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
