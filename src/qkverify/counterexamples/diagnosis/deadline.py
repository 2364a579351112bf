"""How long a diagnosis may take, whatever else the machine does."""

from __future__ import annotations

import time

PATIENCE = 5.0  # by how much a busy machine, or a call that waits, may stretch it


class Deadline:
    """So many seconds of this process's own work, from now.

    On a busy machine seconds pass that nobody works in, and what is diagnosed must not depend on them; on many cores more
    seconds are worked than pass. The fewer of both count, and at least a fifth of those that pass.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._passed, self._worked = time.perf_counter(), time.process_time()

    @property
    def left(self) -> float:
        passed, worked = time.perf_counter() - self._passed, time.process_time() - self._worked
        return self.seconds - max(min(passed, worked), passed / PATIENCE)

    @property
    def over(self) -> bool:
        return self.left <= 0

    def half(self) -> Deadline:
        """Half of what is left."""
        return Deadline(self.left / 2)
