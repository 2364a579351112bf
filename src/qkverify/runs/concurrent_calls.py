"""Calls in several threads that meet inside: what a scratch buffer shared by all callers does not survive."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qkverify.contract import process_settings
from qkverify.runs import triton_interpreter
from qkverify.runs.assertions import assert_true
from qkverify.runs.run import Run

T = TypeVar("T")
THREADS = 4
TURN_SECONDS = 1e-6  # threads of Python take turns often, so that they meet inside a call


def unfit(run: Run) -> str | None:
    """Why calls in threads are not judged, or None."""
    functions = [run.implementation.function, run.implementation.vjp]
    return (
        triton_interpreter.REASON
        if any(f is not None and triton_interpreter.interpreted(f) for f in functions)
        else None
    )


def together(run: Run, calls: Sequence[Callable[[], T]]) -> list[T]:
    """What the calls return, made at once by a few threads. Raises LawViolation where they left a setting changed."""
    interval, before = sys.getswitchinterval(), run.framework.global_state()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            returned = list(pool.map(lambda call: call(), calls))
    finally:
        sys.setswitchinterval(interval)
    changed = process_settings.differences(before, run.framework.global_state())
    assert_true(not changed, f"calls in threads changed {'; '.join(changed)}")
    return returned
