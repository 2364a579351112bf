"""The cells of targets. A worker imports a target and makes its first calls; the judge gets what they showed."""

from __future__ import annotations

from collections.abc import Sequence

from qkverify.contract import Implementation
from qkverify.errors import HarnessError, NothingVerified
from qkverify.probes.survival import FIRST_CALL
from qkverify.verification.checking import Cell, VerificationPlan, check_words, group_of
from qkverify.verification.isolation import exchange
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.dialogue import ask
from qkverify.verification.isolation.limits import Limits, limits
from qkverify.verification.isolation.process import Worker, possible

KEPT = 3  # workers that planned a target and wait to check it: each holds its framework


class Planner:
    """Plans targets as `checking.plan` does; `workers` are those that know a target already, by its group."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.workers: dict[str, list[Worker]] = {}

    def plan(
        self, targets: Sequence[str], devices: Sequence[str] = (), dtypes: Sequence[str] = ()
    ) -> VerificationPlan:
        """The cells of targets. Raises UsageError as `checking.plan`; a target whose worker dies has none."""
        check_words(devices, dtypes)
        planned = VerificationPlan([], {}, [], {})
        for target in targets:
            answer = self._answer(
                exchange.Plan(target, list(devices), list(dtypes), self.limits.call_seconds)
            )
            if isinstance(answer, Death):
                reason = f"{answer.sentence} when it was imported or first called"
                planned.unavailable[target, "cpu"] = planned.idle[target] = reason
            else:
                _add(planned, target, answer)
        planned.cells.sort(key=lambda cell: cell.implementation.operation != "attention")
        return planned

    def close(self) -> None:
        """End the workers that nobody took."""
        for worker in (worker for several in self.workers.values() for worker in several):
            worker.close()
        self.workers = {}

    def _answer(self, request: exchange.Plan) -> exchange.Planned | Death:
        group, kept = group_of(request.target), False
        several = self.workers.setdefault(group, [])
        worker = several.pop() if several else Worker()
        try:
            events = ask(worker, request, self.limits)
            if isinstance(events, Death):
                return events
            if isinstance(events[-1], exchange.Refused):
                raise events[-1].error()
            answer = next((event for event in events if isinstance(event, exchange.Planned)), None)
            if answer is None:
                raise HarnessError(f"no plan of {request.target} came back")
            kept = sum(map(len, self.workers.values())) < KEPT
            if kept:
                several.append(worker)
            return answer
        finally:
            if not kept:
                worker.close()


def rehearse(targets: Sequence[str], devices: Sequence[str] = (), dtypes: Sequence[str] = ()) -> None:
    """Import targets and make their first calls in workers, before this process does the same.

    Raises UsageError as `checking.plan`, and NothingVerified for a target that a worker does not survive.
    """
    bounds = limits()
    for target in targets if possible() else ():
        worker = Worker()
        try:
            events = ask(
                worker, exchange.Plan(target, list(devices), list(dtypes), bounds.call_seconds), bounds
            )
            for event in [] if isinstance(events, Death) else events:
                if isinstance(event, exchange.Refused):
                    raise event.error()
                if isinstance(event, exchange.Planned) and not isinstance(events, Death):
                    deadly = [reason for _, _, reason in event.unavailable if reason.endswith(FIRST_CALL)]
                    if deadly:
                        raise NothingVerified(f"{target}: {deadly[0]}")
                    events = _conventions(worker, target, event, bounds) or events
            if isinstance(events, Death):
                raise NothingVerified(f"{target}: {events.sentence} when it was imported or first called")
        finally:
            worker.close()


def _conventions(worker: Worker, target: str, answer: exchange.Planned, bounds: Limits) -> Death | None:
    """How the worker died over the conventions of a cell, if it did."""
    for number, device, dtype in answer.cells:
        facts = answer.implementations[number]
        cell = exchange.CellAddress(target, facts.name, device, dtype)
        request = exchange.Check(cell, [], [], 1, silent=True)
        events = ask(worker, request, bounds, compiled=facts.compiles)
        if isinstance(events, Death):
            return events
    return None


def _add(planned: VerificationPlan, target: str, answer: exchange.Planned) -> None:
    implementations: list[Implementation] = [facts.standing_in() for facts in answer.implementations]
    planned.implementations.extend(implementations)
    planned.cells.extend(Cell(implementations[n], device, dtype, target) for n, device, dtype in answer.cells)
    planned.unavailable.update({(name, device): reason for name, device, reason in answer.unavailable})
    planned.idle.update(answer.idle)
