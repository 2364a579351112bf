"""The judge's own comparison, after the laws of a cell: it draws problems that the worker has not seen, asks for the results of
plain calls, and holds them against its own reference and bounds.

A law that held beside the function and is broken here is replayed beside it on the same problem. Broken there too, it is an
ordinary failure that the worker's examples had missed. If it holds there, the process was changed, or the results depend on who
asks.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec

from qkverify import foreign_text
from qkverify.errors import ContractError, HarnessError, LawViolation, UnsupportedCase
from qkverify.results import OUTCOMES_BROKEN, Counterexample, Verdict
from qkverify.verification import checking
from qkverify.verification.isolation import deaths, disagreements, exchange
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.outside_run import OutsideRun
from qkverify.verification.isolation.questions import Questions, WorkerDied
from qkverify.verification.laws import SEED, Law

if TYPE_CHECKING:
    from qkverify.verification.isolation.judge import Task
    from qkverify.verification.isolation.limits import Limits
    from qkverify.verification.isolation.process import Worker

EXAMPLES = 12  # of each law that compares whole results with the reference; of others, drawn by lot, a third
OTHERS = 6  # laws that are drawn by lot
SECONDS = 0.4  # after which laws of whole results ask for no more than the fewest, and others for none
FEWEST = 4  # results that are asked for, however long they take
REFUSED = (
    20  # questions, all refused, that say something of a function that took half of the calls beside the law
)
# The laws of whole results whose name does not say that they agree with a reference.
WHOLE = ("packed_equals_alone", "packed_gradients_equal_alone", "chunked_prefill_equals_full", "cached_gradients_equal_alone",
         "paged_equals_contiguous", "paged_gradients_equal_alone", "alibi_slopes")  # fmt: skip


def audited(task: Task, worker: Worker, limits: Limits, examples: int) -> Death | None:
    """Replace a verdict of a task in which nothing is broken, by what the judge finds itself; how the worker died over it, if it
    did. One law that is broken is enough, and ends it. Implementations of this package are taken at their word."""
    if not task.group or any(verdict.outcome in OUTCOMES_BROKEN for verdict in task.verdicts):
        return None
    audit = Audit(task, worker, limits)
    for law, asked in _questions(task):
        if audit.is_late() and not compares_whole_results(law):
            break
        death = None
        try:
            new = audit.verdict(law, min(asked, examples))
        except WorkerDied as died:
            death = died.death
            new = deaths.verdict(law, task.cell, death, deaths.plain(law, task.cell, death, ""))
        if new is not None:
            task.verdicts = [new if new.law == known.law else known for known in task.verdicts]
            if new.outcome != "finding" or death:
                return death
    return None


class Audit:
    """The judge's own verdicts on one cell."""

    def __init__(self, task: Task, worker: Worker, limits: Limits) -> None:
        self.task, self.cell = task, task.cell
        self.questions = Questions(task.cell, task.conventions, worker, limits)
        self.until = time.monotonic() + SECONDS

    def is_late(self) -> bool:
        """Whether it has taken its time."""
        return time.monotonic() > self.until

    def verdict(self, law: Law, examples: int) -> Verdict | None:
        """What is to be said of a law that held beside the function, if it is something else."""
        try:
            run = self._run(law)
            return None if run is None else self._checked(law, run, examples)
        except Exception as error:  # what the worker says of itself may be anything
            said = error if isinstance(error, HarnessError) else foreign_text.of_error(error)
            return self._changed(law, "error", f"{disagreements.HARNESS}{foreign_text.shown(said)}")

    def _run(self, law: Law) -> OutsideRun | None:
        """A run for a law that applies to it."""
        run = self.questions.run()

        def ends() -> bool:
            enough = run.calls - run.refused >= FEWEST or run.calls >= REFUSED
            return enough and self.is_late() and not run.failing

        run.ends = ends
        return run if law.unfit(run) is None else None

    def _checked(self, law: Law, run: OutsideRun, examples: int) -> Verdict | None:
        try:
            law.check(run, max_examples=examples, seed=_seed(law.name), database=None)
        except UnsupportedCase:
            return self._refused(law, run)
        except HarnessError:
            raise
        except Exception as broken:
            return None if law.chance else self._beside(law, run, broken)
        return None

    def _beside(self, law: Law, run: OutsideRun, broken: Exception) -> Verdict:
        """The law on the same problem beside the function: its failure there, or what it means that it holds there."""
        request = exchange.Recheck(self.questions.address, law.name, checking.own_files([law]), run.drawn)
        for event in self.questions.events(request):
            if isinstance(event, exchange.Described):
                return self._found(law, event.verdict)
        if isinstance(broken, LawViolation | ContractError):
            again = self._broken_again(law, run)
            example = disagreements.example(law, run, broken, again=again)
            return self._changed(law, "failed", disagreements.sentence(broken, again=again), example)
        if not run.raising:  # nor did the call raise
            raise broken
        return self._changed(law, "error", disagreements.raises(foreign_text.shown_line(run.raising)))

    def _found(self, law: Law, said: Verdict) -> Verdict:
        """The failure as the worker tells it. That it is one, and whether it was recorded, the worker does not decide."""
        recorded = law.name in self.cell.implementation.findings_at(self.cell.device, self.cell.dtype)
        if said.outcome == "finding" and recorded:
            return self._changed(law, "finding", said.reason, said.counterexample)
        example = said.counterexample
        if example is not None:
            example = msgspec.structs.replace(example, message=f"{example.message}\n  {disagreements.MISSED}")
        return self._changed(law, "failed", said.reason, example)

    def _broken_again(self, law: Law, run: OutsideRun) -> bool:
        try:
            law.replay(self.questions.run(), run.failing)
        except (LawViolation, ContractError):
            return True
        except Exception:  # another error than before
            return False
        return False

    def _refused(self, law: Law, run: OutsideRun) -> Verdict | None:
        """Whoever refuses everything that is asked from outside, and took at least half of the same beside the law, is not
        verified."""
        known = self._known(law)
        took_half = known.outcome == "passed" and (
            known.tested is None or 2 * known.tested.refused <= known.tested.calls
        )
        if run.calls < REFUSED or run.refused < run.calls or not took_half:
            return None
        return self._changed(law, "error", disagreements.refuses(foreign_text.shown_line(run.refusal)))

    def _known(self, law: Law) -> Verdict:
        return next(verdict for verdict in self.task.verdicts if verdict.law == law.name)

    def _changed(self, law: Law, outcome: Any, reason: str, example: Counterexample | None = None) -> Verdict:
        return msgspec.structs.replace(
            self._known(law), outcome=outcome, reason=reason, counterexample=example
        )


def compares_whole_results(law: Law) -> bool:
    """Whether a law holds all that a call returns against the reference."""
    return ("agree" in law.name and law.weight >= 0.5) or law.name in WHOLE


def _questions(task: Task) -> list[tuple[Law, int]]:
    """The laws to ask about, with their examples: all about whole results, whatever the worker said of them, and some of those
    that held, drawn by lot."""
    known = {verdict.law: verdict.outcome for verdict in task.verdicts}
    first = [
        law
        for law in task.laws
        if compares_whole_results(law) and known.get(law.name) in ("passed", "not offered")
    ]
    rest = [law for law in task.laws if known.get(law.name) == "passed" and law not in first]
    drawn = random.Random(_seed(str(task.cell))).sample(rest, min(OTHERS, len(rest)))
    return [*((law, EXAMPLES) for law in first), *((law, EXAMPLES // 3) for law in drawn)]


def _seed(what: str) -> int:
    """A secret; where QKVERIFY_SEED asks for the same problems in every run, others than the worker's."""
    if SEED not in os.environ:
        return secrets.randbits(64)
    return int.from_bytes(hashlib.sha256(f"{os.environ[SEED]} outside {what}".encode()).digest()[:8], "big")
