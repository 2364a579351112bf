"""How far a long piece of work has come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qkverify.cli.console import console

LINE_SECONDS = 15.0  # between two lines of progress where there is no terminal


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[float, str], None]]:
    """A bar with what is being done; the function that it gives takes the share that is done and a label.

    In a file or a pipe, where a bar shows nothing, a line now and then: of a run that is killed they tell how far it came.
    """
    if not console.is_terminal:
        start, said = time.monotonic(), -LINE_SECONDS

        def say(share: float, now: str) -> None:
            nonlocal said
            passed = time.monotonic() - start
            if share == 1 or passed - said >= LINE_SECONDS:
                said = passed
                console.print(f"{what} {share:4.0%} after {passed:.0f} s  {now}", markup=False)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left about"),
               TimeRemainingColumn(), TextColumn("{task.fields[now]}", markup=False))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=1.0, now="")
        yield lambda share, now: bar.update(task, completed=share, now=now)
