"""Measuring on one thread: what it computes is then known, whatever else runs on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from qkverify.contract import frameworks


@contextmanager
def one_thread() -> Iterator[int | None]:
    """NumPy's BLAS and torch on one thread; gives 1, or None where threadpoolctl, which sets the BLAS, is not installed."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        yield None
        return
    with ExitStack() as stack:
        if frameworks.missing("torch") is None:
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        stack.enter_context(threadpool_limits(1))
        yield 1
