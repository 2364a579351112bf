"""The laws of cells, checked by workers: a worker that dies costs one law, and another goes on with the rest.

The judge is one thread that waits for all its workers: to their lines, their ends, and the clock.
"""

from __future__ import annotations

import math
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field

import msgspec

from qkverify.probes.conventions import Choice
from qkverify.results import Counterexample, Message, Verdict
from qkverify.runs.raising_conditions import CallShape
from qkverify.verification import checking, process_changes
from qkverify.verification.checking import Cell
from qkverify.verification.isolation import asking, deaths, exchange
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.dialogue import TICK, ask_a_new_one, over
from qkverify.verification.isolation.limits import Limits
from qkverify.verification.isolation.process import Worker
from qkverify.verification.laws import Law


@dataclass(eq=False)
class Task:
    """Some laws of a cell; `verdicts` are those that are known."""

    cell: Cell
    laws: list[Law]
    silent: bool = False
    verdicts: list[Verdict] = field(default_factory=list)
    conventions: dict[str, Choice] = field(default_factory=dict)
    returned: set[CallShape] = field(default_factory=set)
    raised: set[CallShape] = field(default_factory=set)
    causes: Counter[Death] = field(default_factory=Counter)
    current: str = ""  # the law that is being checked
    stalled: dict[str, str] = field(
        default_factory=dict
    )  # laws a call of which did not return once, and what was said of it
    ending: bool = False  # everything is checked, and the worker ends
    ended: bool = False  # it has said so

    @property
    def group(self) -> str:
        """Tasks of one group may share a worker: those of one target, and those of our own implementations."""
        return checking.group_of(self.cell.target)

    @property
    def left(self) -> list[Law]:
        """The laws without a verdict."""
        known = {verdict.law for verdict in self.verdicts}
        return [law for law in self.laws if law.name not in known]


class Judge:
    """Checks tasks with at most `jobs` workers. `threads` is the number of threads of each; None leaves it to the libraries."""

    def __init__(self, limits: Limits, *, examples: int, jobs: int = 1, threads: int | None = None,
                 began: Callable[[Task], None] | None = None) -> None:  # fmt: skip
        self.limits, self.examples, self.jobs, self.threads, self.began = (
            limits,
            examples,
            jobs,
            threads,
            began,
        )
        self.spare: dict[str, list[Worker]] = {}  # by group
        self.busy: dict[Worker, Task] = {}
        self.waiting: deque[Task] = deque()
        self.finished: deque[Task] = deque()

    def check(self, tasks: Sequence[Task], until: float = math.inf) -> Generator[Task]:
        """The tasks as they finish; nothing is waited for after `until`, by time.monotonic()."""
        self.waiting.extend(tasks)
        try:
            while self.waiting or self.busy or self.finished:
                if time.monotonic() >= until:
                    return
                while self.waiting and len(self.busy) < self.jobs:
                    self._begin(self.waiting.popleft())
                select.select([worker.reading for worker in self.busy], [], [], TICK)
                for worker in list(self.busy):
                    self._look_at(worker)
                while self.finished:
                    yield self.finished.popleft()
        finally:
            self.close()

    def close(self) -> None:
        """End all workers."""
        for worker in [*self.busy, *(worker for several in self.spare.values() for worker in several)]:
            worker.close()
        self.busy.clear()
        self.spare.clear()

    def _begin(self, task: Task) -> None:
        several = self.spare.get(task.group, [])
        worker = several.pop() if several else Worker(self.threads)
        self.busy[worker], task.current = task, ""
        files = checking.own_files(task.left)
        worker.send(exchange.request_line(exchange.Check(
            exchange.CellAddress.of(task.cell), [law.name for law in task.left], files, self.examples,
            task.silent or bool(task.verdicts))))  # fmt: skip

    def _look_at(self, worker: Worker) -> None:
        task = self.busy[worker]
        dead = worker.has_died()
        for line in worker.lines():
            try:
                event = exchange.event_of(line)
            except msgspec.DecodeError as error:
                self._bury(worker, deaths.of_forgery(error))
                return
            self._hear(worker, task, event)
            if worker not in self.busy or self.busy[worker] is not task:
                return
        if task.ended:
            self._see_off(worker, task)
        elif dead:
            self._bury(worker, deaths.of_words(worker.death))
        elif death := over(worker, self.limits, compiled=checking.compiled(task.cell), ending=task.ending):
            worker.end()
            self._bury(worker, death)

    def _hear(self, worker: Worker, task: Task, event: exchange.Event) -> None:
        if isinstance(event, exchange.Began):
            if not task.conventions and self.began:
                task.conventions = event.conventions
                self.began(task)
            task.conventions = event.conventions
        elif isinstance(event, exchange.Checking):
            task.current = event.law
        elif isinstance(event, exchange.Judged):
            self._note(worker, task, event.verdict)
        elif isinstance(event, exchange.Calls):
            task.returned |= set(event.returned)
            task.raised |= set(event.raised)
        elif isinstance(event, exchange.Done):
            self._done(worker, task)
        elif isinstance(event, exchange.Refused):
            worker.end()
            self._bury(worker, Death("error", f"qkverify itself failed: {event.text}"))

    def _note(self, worker: Worker, task: Task, verdict: Verdict) -> None:
        cell = verdict.implementation, verdict.device, verdict.dtype
        if cell != (task.cell.implementation.name, task.cell.device, task.cell.dtype):
            return
        if worker.board.forked():
            verdict = process_changes.of(verdict, "a call came back in two processes: it forks", "crashed")
        if stall := task.stalled.get(verdict.law, ""):
            said = Message("note", f"{stall} once, and did when it was repeated")
            verdict = msgspec.structs.replace(verdict, messages=[*verdict.messages, said])
        if verdict.law == task.current:
            task.verdicts.append(verdict)
            task.current = ""
            if verdict.outcome == "crashed":  # its device is lost: another process has it still
                self._replace(worker)
        else:  # what is said of a failure now that all are known
            task.verdicts = [verdict if verdict.law == known.law else known for known in task.verdicts]

    def _replace(self, worker: Worker) -> None:
        task = self.busy.pop(worker)
        worker.close()
        (self.waiting.appendleft if task.left else self.finished.append)(task)

    def _done(self, worker: Worker, task: Task) -> None:
        if task.ending:
            task.ended = True
        elif task.left:  # it says that it is done, and is not
            worker.end()
            self._bury(worker, Death("error", "its process left laws out"))
        elif asking.audited(task, worker, self.limits, self.examples) is not None:
            self._finish(worker)
        elif any(other.group == task.group for other in self.waiting):
            del self.busy[worker]
            self.spare.setdefault(task.group, []).append(worker)
            self.finished.append(task)
        elif task.group:
            task.ending = True
            worker.send(exchange.request_line(exchange.End()))
        else:
            self._finish(worker)

    def _see_off(self, worker: Worker, task: Task) -> None:
        """A worker that ends itself, and whose children have a moment to do the same."""
        children = worker.left_behind()
        if worker.has_died() and not children:
            self._finish(worker)
        elif time.monotonic() - worker.since > self.limits.of_end:
            death = deaths.of_children(children) if children else deaths.of_end(self.limits.of_end)
            task.verdicts = process_changes.blamed_for(task.verdicts, death.sentence, death.outcome)
            self._finish(worker)

    def _finish(self, worker: Worker) -> None:
        self.finished.append(self.busy.pop(worker))
        worker.close()

    def _bury(self, worker: Worker, death: Death) -> None:
        """The worker is dead: its law gets a verdict, and what is left of its task another worker."""
        task = self.busy.pop(worker)
        place = deaths.place_of(worker.said(), task.cell.implementation.file)
        arguments = worker.board.arguments()
        worker.close()
        if task.ending:
            death = death if death.outcome == "timed out" else deaths.after_the_last_call(death)
            task.verdicts = process_changes.blamed_for(task.verdicts, death.sentence, death.outcome)
            self.finished.append(task)
            return
        law = next((law for law in task.left if law.name == task.current), None)
        if law is None:
            self._give_up(task, f"{death.sentence} before a law was checked")
            return
        if (
            not task.causes[death]
            and law.name not in task.stalled
            and self._was_a_stall(task.cell, law, death, arguments)
        ):
            task.stalled[law.name] = death.sentence
            self.waiting.appendleft(task)
            return
        example = self._described(task.cell, law, death, place, arguments)
        task.verdicts.append(deaths.verdict(law, task.cell, death, example))
        task.causes[death] += 1
        if task.causes[death] >= death.enough and task.left:
            self._give_up(task, f"{death.sentence} in {task.causes[death]} other laws")
        elif task.left:
            self.waiting.appendleft(task)
        else:
            self.finished.append(task)

    def _give_up(self, task: Task, why: str) -> None:
        task.verdicts += deaths.unchecked(task.left, task.cell, why)
        self.finished.append(task)

    def _was_a_stall(self, cell: Cell, law: Law, death: Death, arguments: bytes) -> bool:
        """Whether a call that did not return does so in another worker: what cannot be repeated accuses nobody. The law is then
        checked again, and a second call that does not return breaks it."""
        if death.outcome != "timed out" or not arguments:
            return False
        request = exchange.Repeat(
            exchange.CellAddress.of(cell), law.name, checking.own_files([law]), arguments
        )
        answer = ask_a_new_one(request, self.limits, threads=self.threads, compiled=checking.compiled(cell))
        return not isinstance(answer, Death) and isinstance(answer[-1], exchange.Done)

    def _described(self, cell: Cell, law: Law, death: Death, place: str, arguments: bytes) -> Counterexample:
        """By a worker of its own: the arguments are unpickled there."""
        events: list[exchange.Event] | Death = []
        if arguments:
            request = exchange.Describe(exchange.CellAddress.of(cell), law.name, checking.own_files([law]), death.sentence,
                                        place, arguments)  # fmt: skip
            events = ask_a_new_one(
                request, self.limits, threads=self.threads, compiled=checking.compiled(cell)
            )
        examples = [] if isinstance(events, Death) else [e.verdict.counterexample for e in events
                                                         if isinstance(e, exchange.Described)]  # fmt: skip
        return next(filter(None, examples), None) or deaths.plain(law, cell, death, place)


def explained(cell: Cell, verdicts: Sequence[Verdict], returned: Collection[CallShape],
              raised: Collection[CallShape]) -> list[Verdict] | None:  # fmt: skip
    """What `checking.explained_together` says of these verdicts, by a worker; None if that dies."""
    request = exchange.Explain(exchange.CellAddress.of(cell), list(verdicts), list(returned), list(raised))
    answer = ask_a_new_one(request, Limits(), compiled=checking.compiled(cell))
    if isinstance(answer, Death) or not isinstance(answer[-1], exchange.Done):
        return None
    return exchange.verdicts_in(answer)
