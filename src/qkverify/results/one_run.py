"""One run at a time in a folder or file: a second one is refused, so that neither is lost. On POSIX alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone_in(place: Path, results: Path) -> Iterator[None]:
    """A context in which this process alone holds a folder, or a file that exists. Raises ResultsError if another one does.

    The system gives it up when the process ends, however it ends.
    """
    from qkverify.results.files import ResultsError

    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsError(
                results, 0, "another run writes into it now; wait for it, or give this one another place"
            ) from None
        yield
    finally:
        os.close(descriptor)
