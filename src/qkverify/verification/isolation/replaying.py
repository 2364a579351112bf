"""`qkverify replay` by a worker: beside the function, and where the law holds there, by results that are asked for."""

from __future__ import annotations

import contextlib

from qkverify.counterexamples import store
from qkverify.errors import ContractError, LawViolation
from qkverify.verification.checking import Cell, laws_named
from qkverify.verification.isolation import disagreements, exchange, process
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.dialogue import ask
from qkverify.verification.isolation.limits import Limits
from qkverify.verification.isolation.process import Worker
from qkverify.verification.isolation.questions import Questions, WorkerDied
from qkverify.verification.replay_command import replay_counterexample


def replayed(name: str, target: str, limits: Limits) -> str:
    """As `replay_counterexample`, by a worker; how that died, if it did."""
    if not process.possible():
        return replay_counterexample(name, target)
    process.may_fork()
    with contextlib.closing(Worker()) as worker:
        events = ask(worker, exchange.Replay(name, target, limits.call_seconds), limits)
        if isinstance(events, Death):
            return f"{name}: {events.sentence}"
        if isinstance(events[-1], exchange.Refused):
            raise events[-1].error()
        answer = next(event for event in events if isinstance(event, exchange.Replayed))
        return answer.message or _outside(name, answer, worker, limits)


def _outside(name: str, answer: exchange.Replayed, worker: Worker, limits: Limits) -> str:
    """What is broken where the worker is asked for the results alone, if it is; of laws of this package."""
    record, at = store.load(name), answer.cell
    cell = Cell(answer.facts.standing_in(), at.device, at.dtype, at.target)
    for law in laws_named([record["law"]]):
        run = Questions(cell, answer.conventions, worker, limits).run()
        run.failing = record["drawn"]
        try:
            law.replay(run, record["drawn"])
        except (LawViolation, ContractError) as broken:
            return disagreements.message(law, run, broken, replay=name, again=True)
        except WorkerDied as died:
            return f"{name}: {died.death.sentence}"
        except Exception:  # it cannot be asked for, or is refused
            return ""
    return ""
