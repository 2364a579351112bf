"""Questions to one worker about one cell, of which the judge wants the results of plain calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkverify.errors import HarnessError
from qkverify.probes.conventions import Choice
from qkverify.verification import checking
from qkverify.verification.checking import Cell
from qkverify.verification.isolation import exchange
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.dialogue import ask
from qkverify.verification.isolation.limits import Limits
from qkverify.verification.isolation.outside_run import OutsideRun
from qkverify.verification.isolation.process import Worker


class WorkerDied(BaseException):
    """A worker died over a question; no Exception, because Hypothesis would take it for a failure and shrink."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.sentence)
        self.death = Death(death.outcome, f"{death.sentence} when a result was asked for from outside")


class Questions:
    """All raise WorkerDied, and HarnessError where the worker answers that it cannot."""

    def __init__(self, cell: Cell, conventions: Mapping[str, Choice], worker: Worker, limits: Limits) -> None:
        self.cell, self.conventions, self.worker, self.limits = cell, conventions, worker, limits
        self.address = exchange.CellAddress.of(cell)

    def run(self) -> OutsideRun:
        """One whose calls the worker makes."""
        return OutsideRun(self.cell, self.conventions, self.result)

    def events(self, request: exchange.Request) -> list[exchange.Event]:
        """What the worker answers."""
        events = ask(self.worker, request, self.limits, compiled=checking.compiled(self.cell))
        if isinstance(events, Death):
            raise WorkerDied(events)
        if isinstance(events[-1], exchange.Refused):
            raise HarnessError(events[-1].text)
        return events

    def result(self, method: str, question: Any) -> dict[str, Any]:
        """The fields of `exchange.Returned` for a call."""
        events = self.events(exchange.Call(self.address, method, question))
        answer = next(
            (event for event in events if isinstance(event, exchange.Returned)), exchange.Returned()
        )
        return {name: getattr(answer, name) for name in answer.__struct_fields__}
