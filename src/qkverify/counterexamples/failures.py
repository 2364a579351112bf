"""What the failures of one cell have in common, gathered while its laws are checked and settled when they are done.

A diagnosis is found on the first failure that it explains. Every later failure is held against it: one that it explains gets it
without a search, and one that contradicts it withdraws it. Which calls raised and which returned is gathered from all laws, those
that hold included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qkverify.counterexamples.calls_alone import Judged
from qkverify.counterexamples.causes import settled
from qkverify.counterexamples.diagnosis import claim_of_failure, observe_with
from qkverify.counterexamples.diagnosis.claims import Claim, Observation
from qkverify.counterexamples.diagnosis.observing import fresh
from qkverify.counterexamples.diagnosis.symptoms import writes_into
from qkverify.counterexamples.written_arguments import written_arguments
from qkverify.results import Verdict
from qkverify.runs.raising_conditions import CallShape, separating
from qkverify.runs.run import Run

SEARCHED = 4  # diagnoses that are looked for in one cell for the same wrong aspects: what they do not explain stays so


@dataclass
class Failure:
    """One broken law: a run of its cell, the problems of its counterexample, and the claim that explains it."""

    run: Run
    judged: Sequence[Judged]
    raised: bool
    claim: Claim | None = None


@dataclass
class Failures:
    """The failures of a cell, by law."""

    returned: set[CallShape] = field(default_factory=set)
    raised: set[CallShape] = field(default_factory=set)
    of: dict[str, Failure] = field(default_factory=dict)
    withdrawn: list[Claim] = field(default_factory=list)
    silent: bool = (
        False  # nothing is explained: that is done later, with a look at the failures of other processes
    )
    searched: dict[frozenset[str], int] = field(default_factory=dict)  # how often, by what is wrong

    def calls_of(self, run: Run) -> None:
        """Note the calls that a law made, whatever became of it."""
        self.returned |= run.returned
        self.raised |= run.raised

    def explained(
        self,
        law: str,
        run: Run,
        judged: Sequence[Judged],
        *,
        dropped: bool,
        raised: bool,
        replay: Callable[[Run], object],
    ) -> str:
        """The diagnosis of a law that failed, or nothing; it is kept for the failures that come.

        `replay` checks the law on the failed example with another run.
        """
        if self.silent:
            return ""
        failure = self.of[law] = Failure(fresh(run), judged, raised)
        self._withdraw_contradicted_by(failure)
        if raised:  # no sentence is about an exception
            return ""
        if names := written_arguments(run, replay):
            failure.claim = writes_into(names)
            return failure.claim.sentence
        wrong = frozenset(aspect for call in judged for aspect in call.wrong)
        failure.claim = self._known(failure)
        if failure.claim is None and self.searched.get(wrong, 0) < SEARCHED:
            self.searched[wrong] = self.searched.get(wrong, 0) + 1
            failure.claim = self._new(run, judged, dropped)
        return failure.claim.sentence if failure.claim else ""

    def settled(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """The verdicts with the diagnoses that stand now that all laws are checked, and with when calls raise."""
        for failure in self.of.values():
            if failure.claim is None and not failure.raised:
                failure.claim = self._known(failure)
        conditions = separating(self.raised, self.returned)
        return [self._settled(verdict, conditions) for verdict in verdicts]

    def _settled(self, verdict: Verdict, conditions: list[str]) -> Verdict:
        failure = self.of.get(verdict.law)
        if failure is None or verdict.counterexample is None:
            return verdict
        claim = failure.claim
        return settled(
            verdict,
            diagnosis=self._said(claim) if claim else "",
            raises_when=conditions if failure.raised else [],
        )

    def _said(self, claim: Claim) -> str:
        """A sentence, without what it says of other problems if calls raise on some of those."""
        if not claim.narrower:
            return claim.sentence
        others = (call.subject for f in self.of.values() if f.raised for call in f.judged)
        return claim.sentence if all(map(claim.inside, others)) else claim.narrower

    def _claims(self) -> list[Claim]:
        claims = [failure.claim for failure in self.of.values() if failure.claim is not None]
        every = [each for claim in claims for each in (claim, *claim.beside)]
        return list({id(claim): claim for claim in every}.values())

    def _known(self, failure: Failure) -> Claim | None:
        """A claim about other failures that explains this one."""
        return next((claim for claim in self._claims() if self._explains(claim, failure)), None)

    def _explains(self, claim: Claim, failure: Failure) -> bool:
        wrong = [
            call.subject
            for call in failure.judged
            if claim.aspect in call.wrong and claim.inside(call.subject)
        ]
        return bool(wrong) and not claim.direct and not self._contradicts(claim, failure)

    def _contradicts(self, claim: Claim, failure: Failure) -> bool:
        def observed(subject: Any) -> Observation | None:
            return observe_with(failure.run, subject, claim.aspect)

        observations = map(claim.observed or observed, (call.subject for call in failure.judged))
        return any(
            observation is not None and claim.contradicted(observation) for observation in observations
        )

    def _withdraw_contradicted_by(self, new: Failure) -> None:
        for claim in self._claims():
            if not claim.direct and self._contradicts(claim, new):
                self.withdrawn.append(claim)
                for failure in self.of.values():
                    if failure.claim is claim:
                        failure.claim = None

    def _new(self, run: Run, judged: Sequence[Judged], dropped: bool) -> Claim | None:
        if any(call.mixed for call in judged):  # no mistake of the table is made on top of another
            return None
        wrong = [call.subject for call in judged if call.wrong]
        right = bool(judged) and not wrong
        claim = claim_of_failure(run, wrong, self._problems(), dropped=dropped, right=right)
        return (
            None
            if claim is None or claim.sentence in [withdrawn.sentence for withdrawn in self.withdrawn]
            else claim
        )

    def _problems(self) -> Iterator[Any]:
        """Of all failures, the problems that were called again."""
        return (call.subject for failure in self.of.values() for call in failure.judged)
