"""Where the laws of a run are checked: in workers, or in the process of the judge itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from qkverify.errors import UsageError
from qkverify.probes.conventions import Choice
from qkverify.results import Verdict
from qkverify.verification import checking
from qkverify.verification.checking import Cell, VerificationPlan
from qkverify.verification.isolation import exchange, process
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.judge import Judge, Task, ask_a_new_one
from qkverify.verification.isolation.limits import Limits, limits
from qkverify.verification.isolation.planning import Planner
from qkverify.verification.laws import Law
from qkverify.verification.replay_command import replay_counterexample

Heading = Callable[[Cell, Mapping[str, Choice]], None]


class CheckedCell(NamedTuple):
    """A cell, its verdicts in the order of its laws, and its conventions (empty if its worker died before they were known)."""

    cell: Cell
    verdicts: list[Verdict]
    conventions: Mapping[str, Choice]


class Checker(Protocol):
    """Plans targets, and checks laws on their cells."""

    def plan(
        self, targets: Sequence[Any], devices: Sequence[str] = (), dtypes: Sequence[str] = ()
    ) -> VerificationPlan:
        """As `checking.plan`."""

    def check(
        self, cells: Sequence[Cell], laws: Sequence[Law], profile: str, heading: Heading
    ) -> Iterator[CheckedCell]:
        """The cells as they finish; `heading` is called when the first law of one is about to be checked, or when it is done."""


class InProcess:
    """In this process: a debugger sees everything, and whatever a call does to its process it does to this one."""

    plan = staticmethod(checking.plan)

    def check(
        self, cells: Sequence[Cell], laws: Sequence[Law], profile: str, heading: Heading
    ) -> Iterator[CheckedCell]:
        """One after the other."""
        for cell in cells:
            heading(cell, checking.conventions_of(cell))
            verdicts = checking.checked(cell, laws, examples=checking.examples_of(profile))
            yield CheckedCell(cell, verdicts, checking.conventions_of(cell))


class InWorkers:
    """In worker processes, which end at these limits."""

    def __init__(self, limits: Limits, jobs: int = 1) -> None:
        self.limits, self.jobs = limits, jobs
        if jobs == 1:
            process.may_fork()
        self.planner = Planner(limits)

    def plan(
        self, targets: Sequence[Any], devices: Sequence[str] = (), dtypes: Sequence[str] = ()
    ) -> VerificationPlan:
        """As `checking.plan`; what is imported and called for it, a worker imports and calls."""
        return self.planner.plan(targets, devices, dtypes)

    def check(
        self, cells: Sequence[Cell], laws: Sequence[Law], profile: str, heading: Heading
    ) -> Iterator[CheckedCell]:
        """Cell by cell with one job; with several, parts of cells side by side, in processes of one thread each."""
        every = {cell: checking.applicable(laws, cell) for cell in cells}
        if self.jobs > 1:
            self.planner.close()
            yield from self._side_by_side(every, profile, heading)
            return
        began: set[Cell] = set()

        def begin(task: Task) -> None:
            began.add(task.cell)
            heading(task.cell, task.conventions)

        judge = Judge(self.limits, examples=checking.examples_of(profile), began=begin)
        judge.spare = self.planner.workers
        tasks = [Task(cell, list(laws_of_cell)) for cell, laws_of_cell in every.items()]
        with contextlib.closing(judge.check(tasks)) as finished:
            for task in finished:
                if task.cell not in began:
                    heading(task.cell, task.conventions)
                verdicts = in_order(task.laws, task.verdicts)
                if task.causes:  # several workers checked it
                    verdicts = _explained(task, verdicts)
                yield CheckedCell(task.cell, verdicts, task.conventions)

    def _side_by_side(
        self, laws: Mapping[Cell, Sequence[Law]], profile: str, heading: Heading
    ) -> Iterator[CheckedCell]:
        parts: dict[Cell, list[Task]] = {cell: [] for cell in laws}
        for task in tasks_in_parts(laws, self.limits, profile, self.jobs):
            several = parts[task.cell]
            several.append(task)
            if sum(len(part.laws) for part in several) == len(laws[task.cell]):
                conventions = next((part.conventions for part in several if part.conventions), {})
                heading(task.cell, conventions)
                whole = Task(task.cell, list(laws[task.cell]))
                for part in several:
                    whole.verdicts += part.verdicts
                    whole.returned |= part.returned
                    whole.raised |= part.raised
                verdicts = in_order(whole.laws, whole.verdicts)
                yield CheckedCell(task.cell, _explained(whole, verdicts), conventions)


def chosen(*, in_process: bool, jobs: int, call_seconds: float | None = None, memory: str = "") -> Checker:
    """The checker that a user asks for. Raises UsageError if the options contradict each other."""
    if in_process and (jobs != 1 or call_seconds or memory):
        raise UsageError(
            "--in-process has no worker processes: leave out --jobs, --call-timeout and --memory"
        )
    if in_process or not process.possible():
        return InProcess()
    return InWorkers(limits(call_seconds, memory, jobs), jobs)


def replayed(name: str, target: str, limits_of_worker: Limits) -> str:
    """As `replay_counterexample`, by a worker; how that died, if it did."""
    if not process.possible():
        return replay_counterexample(name, target)
    process.may_fork()
    request = exchange.Replay(name, target, limits_of_worker.call_seconds)
    events = ask_a_new_one(request, limits_of_worker)
    if isinstance(events, Death):
        return f"{name}: {events.sentence}"
    if isinstance(events[-1], exchange.Refused):
        raise events[-1].error()
    return next(event.message for event in events if isinstance(event, exchange.Replayed))


PARTS = 8  # of a cell with as many laws as attention has: what is lost of a run that is killed, and what each process takes


def tasks_in_parts(laws: Mapping[Cell, Sequence[Law]], limits: Limits, profile: str, jobs: int, *, silent: bool = True,
                   until: float = math.inf) -> Iterator[Task]:  # fmt: skip
    """These laws of each cell, a part of a cell at a time, as they finish, in processes of one thread each."""
    longest = max((len(every) for every in laws.values()), default=0)
    size = max(1, -(-longest // PARTS))
    # What is compiled for every other size or option takes longest: it comes first, that nobody waits for it alone.
    cells = sorted(laws, key=lambda cell: not checking.compiled(cell))
    tasks = [Task(cell, list(laws[cell][at : at + size]), silent) for cell in cells
             for at in range(0, len(laws[cell]), size)]  # fmt: skip
    side_by_side = Judge(limits, examples=checking.examples_of(profile), jobs=jobs, threads=1)
    with contextlib.closing(side_by_side.check(tasks, until)) as finished:
        yield from finished


def in_order(laws: Sequence[Law], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts in the order of the laws."""
    by_law = {verdict.law: verdict for verdict in verdicts}
    return [by_law[law.name] for law in laws if law.name in by_law]


def _explained(task: Task, verdicts: Sequence[Verdict]) -> list[Verdict]:
    from qkverify.counterexamples.failures import Failures

    return checking.explained_together(task.cell, verdicts, Failures(task.returned, task.raised))
