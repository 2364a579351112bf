"""Where the laws of a run are checked: in workers, or in the process of the judge itself."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from qkverify.errors import UsageError
from qkverify.probes.conventions import Choice
from qkverify.results import Verdict
from qkverify.results.fingerprint import cores
from qkverify.verification import checking
from qkverify.verification.checking import Cell, VerificationPlan
from qkverify.verification.isolation import process
from qkverify.verification.isolation.judge import Judge, Task
from qkverify.verification.isolation.limits import Limits, limits
from qkverify.verification.isolation.planning import Planner
from qkverify.verification.laws import Law

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
    """In worker processes, which end at these limits.

    With several jobs parts of cells are checked side by side. With `jobs=None` whole cells are, as many as `workers_for` says,
    which then share the memory unless `own_memory`; what comes back, and its order, is that of one job.
    """

    def __init__(self, limits: Limits, jobs: int | None = 1, *, own_memory: bool = False) -> None:
        self.limits, self.jobs, self.own_memory = limits, jobs, own_memory
        if jobs is None or jobs == 1:
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
        """Cell by cell in their order; with several jobs as they finish, in processes of one thread each."""
        every = {cell: checking.applicable(laws, cell) for cell in cells}
        if self.jobs is not None and self.jobs > 1:
            self.planner.close()
            yield from self._side_by_side(every, self.jobs, profile, heading)
        else:
            yield from self._in_order(every, profile, heading)

    def _in_order(
        self, laws: Mapping[Cell, Sequence[Law]], profile: str, heading: Heading
    ) -> Iterator[CheckedCell]:
        """A cell that was checked beside an earlier one waits for it."""
        waiting, headed, finished = deque(laws), set[Cell](), dict[Cell, Task]()
        tasks = {cell: Task(cell, list(laws_of_cell)) for cell, laws_of_cell in laws.items()}

        def head(task: Task) -> None:
            if task.cell is waiting[0] and task.cell not in headed:
                headed.add(task.cell)
                heading(task.cell, task.conventions)

        examples = checking.examples_of(profile)
        workers = 1 if self.jobs is not None else workers_for(laws, examples)
        judge = Judge(self._limits_of(workers), examples=examples, jobs=workers, began=head)
        judge.spare = self.planner.workers
        with contextlib.closing(judge.check(list(tasks.values()))) as checked:
            for done in checked:
                finished[done.cell] = done
                while waiting and waiting[0] in finished:
                    task = finished[waiting[0]]
                    head(task)
                    verdicts = in_order(task.laws, task.verdicts)
                    if task.causes:  # several workers checked it
                        verdicts = _explained(task, verdicts)
                    yield CheckedCell(task.cell, verdicts, task.conventions)
                    waiting.popleft()
                    if waiting and tasks[waiting[0]].conventions:  # it began beside an earlier one
                        head(tasks[waiting[0]])

    def _limits_of(self, workers: int) -> Limits:
        """Those of each of these workers."""
        highest = self.limits.memory_bytes
        shared = highest is not None and workers > 1 and not self.own_memory
        return replace(self.limits, memory_bytes=highest // workers) if highest and shared else self.limits

    def _side_by_side(
        self, laws: Mapping[Cell, Sequence[Law]], jobs: int, profile: str, heading: Heading
    ) -> Iterator[CheckedCell]:
        parts: dict[Cell, list[Task]] = {cell: [] for cell in laws}
        for task in tasks_in_parts(laws, self.limits, profile, jobs):
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


EXAMPLES_OF_A_WORKER = (
    2000  # one that imports torch costs a second or two, as does checking some hundred examples
)


def workers_for(laws: Mapping[Cell, Sequence[Law]], examples: int) -> int:
    """How many workers check whole cells side by side: at most one for each core and cell.

    One where cells share more than cores: a GPU, the cache of a compiler; and where several targets are checked, because what a
    target leaves running could be taken for a process of its neighbour's.
    """
    apart = all(cell.device == "cpu" and not checking.compiled(cell) for cell in laws)
    one_target = len({checking.group_of(cell.target) for cell in laws}) == 1
    if not (apart and one_target and process.forks()):
        return 1
    wanted = sum(map(len, laws.values())) * examples // EXAMPLES_OF_A_WORKER
    return max(1, min(cores(), len(laws), wanted))


def chosen(
    *, in_process: bool, jobs: int | None, call_seconds: float | None = None, memory: str = ""
) -> Checker:
    """The checker that a user asks for; `jobs=None` as in `InWorkers`. Raises UsageError if the options contradict each other."""
    if in_process and (jobs not in (None, 1) or call_seconds or memory):
        raise UsageError(
            "--in-process has no worker processes: leave out --jobs, --call-timeout and --memory"
        )
    if in_process or not process.possible():
        return InProcess()
    return InWorkers(limits(call_seconds, memory, jobs or 1), jobs, own_memory=bool(memory))


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
