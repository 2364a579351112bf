"""Work in parallel processes, of which each may die: a kernel that reads past its memory takes its process with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")


def each(
    work: Callable[..., T], tasks: Sequence[tuple[object, ...]], jobs: int
) -> Iterator[tuple[int, T | None]]:
    """(number of the task, `work(*task)`) as they finish, in processes of one thread each.

    If a process dies, all that are at work are lost with it. Those tasks are done again, each alone; one that dies again gives
    None, and the others go on. What `work` itself raises is raised here.
    """
    lost = dict.fromkeys(range(len(tasks)))
    with _pool(jobs) as pool:
        futures = {pool.submit(work, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                continue
            del lost[futures[future]]
            yield futures[future], future.result()
    for number in lost:
        with _pool(1) as pool:
            future = pool.submit(work, *tasks[number])
            yield number, None if isinstance(future.exception(), BrokenProcessPool) else future.result()


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    with _single_threaded(), ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield pool


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started here use one thread each: the problems are small, and the processes fill the cores."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
