"""Blocks shared among threads. NumPy releases the interpreter's lock inside a product, so that threads do run at once.

A BLAS with threads of its own would split each small product, and wait for its threads after each: here every block has
a thread, and BLAS is held to one. That needs threadpoolctl (`pip install 'qkverify[bench]'`); without it the blocks follow
one another, and BLAS splits products as it likes. Only large calls start threads: starting them takes as long as a small
call. They end with the call, so that no process that is forked later has half a pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

LARGE = 2**27  # multiply-adds: a few milliseconds of one core
BLAS_LIMIT = threading.Lock()  # the number of BLAS threads is one for the process


def run(function: Callable[[Any], object], tasks: Sequence[Any], work: int) -> None:
    """Call the function for each task, and raise what a task raises. `work` is the multiply-adds of them all."""
    with cores(len(tasks) if work >= LARGE else 1) as count:
        if count < 2:
            for task in tasks:
                function(task)
            return
        with ThreadPoolExecutor(count) as pool:
            for future in [pool.submit(function, task) for task in tasks]:
                future.result()


@contextmanager
def cores(useful: int) -> Iterator[int]:
    """How many threads to start, up to as many as are useful. Where two or more, BLAS has one for each of them."""
    # Without waiting: beside another large call this one has one thread, and a forked child never waits for its parent.
    if useful < 2 or (blas := blas_libraries()) is None or not BLAS_LIMIT.acquire(blocking=False):
        yield 1
        return
    try:
        count = min(useful, max((library["num_threads"] for library in blas.info()), default=1))
        with blas.limit(limits=1 if count > 1 else None):
            yield count
    finally:
        BLAS_LIMIT.release()


@lru_cache(maxsize=1)
def blas_libraries() -> Any:
    """The control over the BLAS libraries that are loaded, or None; looking for them takes milliseconds."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")
