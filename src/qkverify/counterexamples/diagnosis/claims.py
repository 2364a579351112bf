"""What a sentence claims, and the problems that it is tested on before it is said.

A sentence is found on problems made for finding it. Before anybody reads it, it is tested on others: on those of every failure
of the run so far, and on random ones as the laws draw them, with any sizes and options, on both sides of what it claims. One
problem that contradicts it, and it is not said. Later failures are held against it too (`failures.Failures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qkverify.counterexamples.diagnosis.deadline import Deadline

Parts = Mapping[str, Any]  # results by name: arrays as received, or Bounded as predicted
TESTED = 60  # random problems that a claim is tested on
ENOUGH = 12  # of them at least: what is so slow that fewer are tried gets no sentence
SECONDS = 2.0  # what the tests of one diagnosis may cost


@dataclass(frozen=True, eq=False)
class Observation:
    """What came back on one problem (or one `Example` of another operation), and what should have."""

    subject: Any
    got: Parts
    expected: Parts
    right: bool


@dataclass(frozen=True)
class Claim:
    """A sentence about one aspect of a result ("output"), and whether an observation contradicts it.

    `narrower` is the sentence without what it says of other problems ("otherwise it is right"), for which `inside` says of which
    problems it speaks. `direct` is a claim that was watched and not inferred: that a call writes into its argument. `observed` is
    the observation for a problem if the claim is made under other conventions than those of the run. `beside` are claims that
    stand and fall with this one: of two mistakes at once, that of the other.
    """

    sentence: str
    aspect: str
    contradicted: Callable[[Observation], bool]
    narrower: str = ""
    inside: Callable[[Any], bool] = lambda subject: True
    direct: bool = False
    observed: Callable[[Any], Observation | None] | None = None
    beside: tuple[Claim, ...] = ()


@dataclass
class ClaimTrial:
    """The observations that claims about one implementation are held against, made when the first claim is there."""

    observe: Callable[[Any, str], Observation | None]
    known: Callable[[], Iterator[Any]]  # the problems of all failures
    random: Callable[[str], Iterator[Any]]  # as the laws draw them, for an aspect
    seconds: float = SECONDS
    _observed: dict[str, list[Observation]] = field(default_factory=dict)
    _random: dict[str, int] = field(default_factory=dict)

    def passed(self, claim: Claim) -> bool:
        """Whether nothing contradicts a claim, and enough was tried."""
        if claim.direct:
            return True
        observed = self.observations(claim.aspect)
        return self._random[claim.aspect] >= ENOUGH and not any(map(claim.contradicted, observed))

    def observations(self, aspect: str) -> list[Observation]:
        if aspect not in self._observed:
            until = Deadline(self.seconds)
            observations = [
                observation for x in self.known() if (observation := self.observe(x, aspect)) is not None
            ]
            count = 0
            for subject in self.random(aspect):
                if count >= TESTED or until.over:
                    break
                observation = self.observe(subject, aspect)
                count += observation is not None
                observations += [] if observation is None else [observation]
            self._observed[aspect], self._random[aspect] = observations, count
        return self._observed[aspect]
