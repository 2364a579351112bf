"""Inputs that no call has seen before, at addresses that the last call did not have.

A kernel that remembers (its last output by the address, by a few numbers, by a hash of all of them) is fast on inputs
that repeat. So what is timed takes turns on windows of one longer row of numbers: every call gets other numbers at
another place, nothing is copied between calls, and the cache stays as warm as with inputs that repeat. Once all
windows had their turn, the numbers move on by a stretch that was drawn, from no seed that a kernel could know.

The output is checked on a trial: new numbers are written where the last call found its own, as their owner does, and
the very call that was timed is made once more. Frameworks whose arrays cannot be written get new arrays.

`FreshArrays` does that for the arrays of any call, `Inputs` for attention. A backward pass by itself belongs to the forward
pass that was made for it: there the upstream gradient alone changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.results import Direction
from qkverify.runs.attention_run import TRIPLE
from qkverify.runs.run import Run

STRIDE = 64  # numbers between two windows: 128 bytes and more, so that every window is aligned as an array of its own is
WINDOWS = 32
COPIES = 4  # where windows would be copies, as of arrays that cannot be written
Call = Callable[[], Any]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FreshCall:
    """`call` is on the numbers of `problem`; `before` stood in the same place in the call before. `written` names the arrays
    of the problem that stand there no more: the call wrote to them."""

    call: Call
    problem: Any
    before: Any
    written: Callable[[], Sequence[str]] = list


class FreshArrays:
    """The arrays of one cell's calls, by their names, in memory of their own.

    `make` gives a call for each of the sets of native arrays that it is given. Arrays that are not `changing` have one place, and
    keep their numbers until a trial writes others. `as_taken` gives a native array the layout that the function takes.
    """

    def __init__(
        self,
        run: Run,
        arrays: Arrays,
        make: Callable[[Sequence[Mapping[str, Any]]], list[Call]],
        *,
        changing: Collection[str],
        windows: int = WINDOWS,
        as_taken: Callable[[Any], Any] = lambda native: native,
    ) -> None:
        self._run, self._make, self._changing, self._as_taken = run, make, changing, as_taken
        self._numbers, self._used = np.random.default_rng(), 0
        self._shapes = {name: np.asarray(array).shape for name, array in arrays.items()}
        self._writable = bool(run.framework.WRITABLE)
        self._rows = {name: self._row(name, array) for name, array in arrays.items()}
        self._native = {name: run.framework.from_numpy(row, run.device) for name, row in self._rows.items()}
        count = min(windows, WINDOWS if self._writable else COPIES)
        self._calls = make([{name: self._window(name, index) for name in arrays} for index in range(count)])
        self._last = len(self._calls) - 1  # so that the first call is on the first window

    def call(self) -> Any:
        """The call, on the next window."""
        self._last = (self._last + 1) % len(self._calls)
        return self._calls[self._last]()

    def again(self) -> Any:
        """The last call once more, on the numbers that it had."""
        return self._calls[self._last]()

    def renew(self, calls: int) -> None:
        """Before so many calls: where they would meet a window again, the numbers move on."""
        self._used += calls
        if self._used < len(self._calls) or not self._writable:
            return
        self._used = calls
        for name in self._changing:
            row = self._rows[name]
            self._write(name, np.roll(row, int(self._numbers.integers(1, max(2, row.size)))))

    def write_last(self, arrays: Arrays) -> Call:
        """These numbers where the last call found its own, and that call; a call on new arrays where none can be written."""
        if not self._writable:
            native = {
                name: self._as_taken(self._run.framework.from_numpy(np.array(array), self._run.device))
                for name, array in arrays.items()
                if name in self._rows
            }
            return self._make([native])[0]
        for name, array in arrays.items():
            if name in self._rows:
                row, start, numbers = (
                    self._rows[name].copy(),
                    self._start(name, self._last),
                    np.asarray(array),
                )
                row[start : start + numbers.size] = numbers.ravel()
                self._write(name, row)
        return self._calls[self._last]

    def last(self) -> dict[str, np.ndarray]:
        """The numbers of the last call, in memory of their own."""
        numbers = {}
        for name, row in self._rows.items():
            shape, start = self._shapes[name], self._start(name, self._last)
            numbers[name] = row[start : start + int(np.prod(shape))].reshape(shape).copy()
        return numbers

    def written_since(self, arrays: Arrays) -> Callable[[], list[str]]:
        """Tells which of these numbers, which stand where the last call found its own, were written over meanwhile."""
        index = self._last

        def written() -> list[str]:
            changed = []
            for name, array in arrays.items():
                row = np.asarray(self._run.framework.to_numpy(self._native[name]))
                start, numbers = self._start(name, index), np.asarray(array)
                if row[start : start + numbers.size].tobytes() != numbers.tobytes():
                    changed.append(name)
            return changed

        return written if self._writable else list

    def lends(self, array: np.ndarray) -> bool:
        """Whether an array lies in the memory of these, where they can be written."""
        if not self._writable or self._run.device != "cpu":
            return False
        return any(
            np.may_share_memory(array, self._run.framework.to_numpy(native))
            for native in self._native.values()
        )

    def _start(self, name: str, index: int) -> int:
        return index * STRIDE if name in self._changing else 0

    def _row(self, name: str, array: np.ndarray) -> np.ndarray:
        """The numbers of an array, and as many more as windows reach past them."""
        flat = np.asarray(array).ravel()
        if name not in self._changing or not flat.size:
            return flat.copy()
        more = STRIDE * WINDOWS
        order = self._numbers.permutation(min(flat.size, 2 * more))
        return np.concatenate([flat, np.resize(flat[order], more)])

    def _window(self, name: str, index: int) -> Any:
        shape, start = self._shapes[name], self._start(name, index)
        return self._as_taken(self._native[name][start : start + int(np.prod(shape))].reshape(shape))

    def _write(self, name: str, row: np.ndarray) -> None:
        """Other numbers into a row, here and where the calls read them."""
        self._run.framework.overwrite(self._native[name], row)
        self._rows[name][...] = row


class Inputs(FreshArrays):
    """The inputs of one cell of attention. `problem` gives sizes, options and the first numbers."""

    def __init__(self, run: Run, problem: Problem, direction: Direction) -> None:
        names = TRIPLE if direction == "forward" else (*TRIPLE, "upstream")
        backward = direction == "backward"
        self._problem = problem
        super().__init__(
            run,
            {name: getattr(problem, name) for name in names},
            lambda windows: run.callables(problem, direction, windows),
            changing=("upstream",) if backward else names,
            windows=1 if backward else WINDOWS,
            as_taken=run.as_taken,
        )

    def trial(self, fresh: Problem) -> FreshCall:
        """The call at the place of the last one, after the numbers of `fresh` were written there."""
        before = self.problem_of_last()
        names = self._changing if self._writable else self._rows
        call = self.write_last({name: getattr(fresh, name) for name in names})
        problem = self.problem_of_last() if self._writable else fresh
        written = self.written_since({name: getattr(problem, name) for name in self._rows})
        return FreshCall(call, problem, before, written)

    def problem_of_last(self) -> Problem:
        """The problem of the last call, in numbers of its own."""
        return self._problem.replace(**self.last())
