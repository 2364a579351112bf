"""Inputs that no call has seen before, at addresses that the last call did not have.

A kernel that remembers (its last output by the address, by a few numbers, by a hash of all of them) is fast on inputs
that repeat. So what is timed takes turns on windows of one longer row of numbers: every call gets other numbers at
another place, nothing is copied between calls, and the cache stays as warm as with inputs that repeat. Once all
windows had their turn, the numbers move on by a stretch that was drawn.

The output is checked on a trial: new numbers are written where the last call found its own, as their owner does, and
the very call that was timed is made once more. Frameworks whose arrays cannot be written get new arrays.

A backward pass by itself belongs to the forward pass that was made for it: there the upstream gradient alone changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class FreshCall:
    """`call` is on the numbers of `problem`; `before` stood in the same place in the call before."""

    call: Call
    problem: Problem
    before: Problem


class Inputs:
    """The inputs of one cell in memory of their own. `problem` gives sizes, options and the first numbers."""

    def __init__(self, run: Run, problem: Problem, direction: Direction, seed: int = 0) -> None:
        self._run, self._problem, self._direction = run, problem, direction
        self._numbers, self._used = np.random.default_rng(seed), 0
        names = TRIPLE if direction == "forward" else (*TRIPLE, "upstream")
        self._changing = ("upstream",) if direction == "backward" else names
        self._writable = bool(run.framework.WRITABLE)
        count = 1 if direction == "backward" else WINDOWS if self._writable else COPIES
        self._rows = {name: self._row(getattr(problem, name)) for name in names}
        self._native = {name: run.framework.from_numpy(row, run.device) for name, row in self._rows.items()}
        self._windows = [{name: self._window(name, index) for name in names} for index in range(count)]
        self._calls = run.callables(problem, direction, self._windows)
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

    def trial(self, fresh: Problem) -> FreshCall:
        """The call at the place of the last one, after the numbers of `fresh` were written there."""
        before = self._at(self._last)
        if not self._writable:
            (call,) = self._run.callables(fresh, self._direction, [self._arrays(fresh)])
            return FreshCall(call, fresh, before)
        for name in self._changing:
            row, start = self._rows[name].copy(), self._last * STRIDE
            numbers = np.asarray(getattr(fresh, name))
            row[start : start + numbers.size] = numbers.ravel()
            self._write(name, row)
        return FreshCall(self._calls[self._last], self._at(self._last), before)

    def _row(self, array: np.ndarray) -> np.ndarray:
        """The numbers of an array, and as many more as windows reach past them."""
        flat = np.asarray(array).ravel()
        more = STRIDE * WINDOWS
        order = self._numbers.permutation(min(flat.size, 2 * more))
        return np.concatenate([flat, np.resize(flat[order], more)]) if flat.size else flat

    def _window(self, name: str, index: int) -> Any:
        shape = getattr(self._problem, name).shape
        start = index * STRIDE
        size = int(np.prod(shape))
        return self._run.as_taken(self._native[name][start : start + size].reshape(shape))

    def _arrays(self, problem: Problem) -> Mapping[str, Any]:
        """The numbers of another problem in arrays of their own."""
        native = {
            name: self._run.framework.from_numpy(np.array(getattr(problem, name)), self._run.device)
            for name in self._rows
        }
        return {name: self._run.as_taken(array) for name, array in native.items()}

    def _at(self, index: int) -> Problem:
        """The problem that stands in a window, in numbers of its own."""
        changed = {}
        for name, row in self._rows.items():
            shape, start = getattr(self._problem, name).shape, index * STRIDE
            changed[name] = row[start : start + int(np.prod(shape))].reshape(shape).copy()
        return self._problem.replace(**changed)

    def _write(self, name: str, row: np.ndarray) -> None:
        """Other numbers into a row, here and where the calls read them."""
        self._run.framework.overwrite(self._native[name], row)
        self._rows[name][...] = row
