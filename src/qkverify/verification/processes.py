"""Work in parallel processes, of which each may die: a kernel that reads past its memory takes its process with it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


def each(
    work: Callable[..., T],
    tasks: Sequence[tuple[object, ...]],
    jobs: int,
    *,
    spent: Callable[[T], bool] = lambda result: False,
    until: float = math.inf,
) -> Iterator[tuple[int, T | None]]:
    """(number of the task, `work(*task)`) as they finish, in processes of one thread each.

    A process that dies loses its own task alone, which is done again by another; one that dies again gives None. A process is
    replaced as well when `spent` of its result says that it is of no more use. What `work` itself raises is raised here. Whoever
    stops listening ends what is at work, and so does the moment `until`, by time.monotonic().
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, T | None] | BaseException] = SimpleQueue()
    stopping = Event()
    for number in range(len(tasks)):
        waiting.put(number)

    workers = [_Own(stopping) for _ in range(min(jobs, len(tasks)))]

    def keep_busy(worker: _Own) -> None:
        """A thread with a process of its own: which task a process died of is then known."""
        try:
            with contextlib.suppress(Empty):
                while True:
                    number = waiting.get_nowait()
                    result = worker.result_of(work, tasks[number])
                    if result is not None and spent(result):
                        worker.close()
                    done.put((number, result))
        except BaseException as error:
            done.put(error)
        finally:
            worker.close()

    threads = [Thread(target=keep_busy, args=(worker,), daemon=True) for worker in workers]
    with _single_threaded():
        try:
            for thread in threads:
                thread.start()
            for _ in tasks:
                try:
                    finished = done.get(
                        timeout=None if until == math.inf else max(0.0, until - time.monotonic())
                    )
                except Empty:
                    return
                if isinstance(finished, BaseException):
                    raise finished
                yield finished
        finally:
            stopping.set()
            with contextlib.suppress(Empty):  # where nobody waits for the rest, it is not begun
                while True:
                    waiting.get_nowait()
            for worker in workers:
                worker.end()
            for thread in threads:
                thread.join()


START_SECONDS = 10.0  # a process that was just begun says its number within them


class _Own:
    """One process that is started when it is needed, and again when it was closed or died."""

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping
        self._pool: ProcessPoolExecutor | None = None
        self._process: Future[int] | None = None

    def result_of(self, work: Callable[..., T], task: tuple[object, ...]) -> T | None:
        """What the work gives; None where it ends its process twice."""
        for _ in range(2):
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, mp_context=get_context("spawn"), initializer=_end_with_parent
                )
                self._process = self._pool.submit(os.getpid)
            try:
                return self._pool.submit(work, *task).result()
            except BrokenProcessPool:
                self.close()
                if self._stopping.is_set():  # it died of the interrupt that ends us as well
                    break
        return None

    def end(self) -> None:
        """End the process at once, whatever it does."""
        process = self._process
        if self._pool is not None and process is not None:
            with contextlib.suppress(
                OSError, BrokenProcessPool, TimeoutError
            ):  # it ended by itself, or never began
                os.kill(process.result(START_SECONDS), signal.SIGTERM)

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever, and keep its share of a GPU."""
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end, daemon=True).start()


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
