"""The cells of targets. A worker imports a target and makes its first calls; the judge gets what they showed."""

from __future__ import annotations

from collections.abc import Sequence

from qkverify.contract import DEVICES, DTYPES, Implementation
from qkverify.errors import HarnessError, UsageError
from qkverify.verification.checking import Cell, VerificationPlan, group_of
from qkverify.verification.isolation import exchange
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.judge import ask
from qkverify.verification.isolation.limits import Limits
from qkverify.verification.isolation.process import Worker

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
        for requested, every, what in ((devices, DEVICES, "device"), (dtypes, DTYPES, "dtype")):
            for word in requested:
                if word not in every:
                    raise UsageError.unknown(what, word, every)
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


def _add(planned: VerificationPlan, target: str, answer: exchange.Planned) -> None:
    implementations: list[Implementation] = [facts.standing_in() for facts in answer.implementations]
    planned.implementations.extend(implementations)
    planned.cells.extend(Cell(implementations[n], device, dtype, target) for n, device, dtype in answer.cells)
    planned.unavailable.update({(name, device): reason for name, device, reason in answer.unavailable})
    planned.idle.update(answer.idle)
