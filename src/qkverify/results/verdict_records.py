"""What was verified: implementations, verdicts with their counterexamples, planted bugs."""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal[
    "passed", "failed", "finding", "not offered", "unavailable", "crashed", "timed out", "error"
]
OUTCOMES_BROKEN: tuple[Outcome, ...] = ("failed", "crashed", "timed out", "error")
# by the implementation itself: an error is the harness's own
OUTCOMES_AGAINST = tuple(outcome for outcome in OUTCOMES_BROKEN if outcome != "error")


class Semantic(msgspec.Struct, frozen=True):
    """One choice in which libraries legitimately differ, and how we know it."""

    value: str
    how: Literal["declared", "detected", "not applicable"]


class ImplementationInfo(msgspec.Struct, frozen=True, tag="implementation"):
    """What an implementation says of itself. `unavailable` maps a device to the reason; `unknown` are parameters that mean
    nothing to the contract."""

    name: str
    operation: str
    summary: str
    arrays: str
    file: str
    dtypes: list[str] = []
    devices: list[str] = []
    offers: list[str] = []
    not_offered: list[str] = []
    requires: list[str] = []
    semantics: dict[str, Semantic] = {}
    unavailable: dict[str, str] = {}
    unknown: list[str] = []


class Counterexample(msgspec.Struct, frozen=True):
    """The smallest failure found: `message` is the whole text a person sees, `replay` the id to repeat it.

    The fields after `script` say why the law failed (see `causes`); files from before they were noted leave them empty.

    diagnosis        the sentence after "looks like"
    exception, line  what the implementation raised ("ValueError: ...", in one line), and the line of its file that did
    raises_when      conditions that all calls which raised meet, and no call that returned, the simplest first
    value_wrong      the output (or result) of one of the problems is not the reference's, whatever the law is about
    gradient_wrong   the same of gradients
    numbers          how many numbers the arrays of the problems hold
    traits           what its calls have that a plain call has not (see `traits`); None in files from before it was noted
    """

    message: str
    problem: str
    got: str
    exact: str
    bound: str
    margin: float | None
    location: str
    replay: str
    script: str = ""
    diagnosis: str = ""
    exception: str = ""
    line: str = ""
    raises_when: list[str] = []
    value_wrong: bool = False
    gradient_wrong: bool = False
    numbers: int = 0
    traits: list[str] | None = None


class Message(msgspec.Struct, frozen=True):
    """What an implementation said so many times while it was called: `kind` is the class of a warning, or "stdout" or "stderr"
    for a printed line; `place` the file and line that warned. Numbers that differed from time to time stand as #."""

    kind: str
    text: str
    place: str = ""
    count: int = 1


class Tested(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a law put to the test: `calls` of the function, how many of them it `refused` and in which words first, and the
    examples in which its `results`, or its `gradients`, were compared with the reference's numbers (see `comparisons`)."""

    calls: int = 0
    refused: int = 0
    refusal: str = ""
    results: int = 0
    gradients: int = 0


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """One law held against one implementation, dtype and device. `margin` is the largest |error| / bound.

    `used` are the options (or "gradients") that its calls put to use, `tested` is what it put to the test: None of a law that
    was not tried, because the implementation does not offer what it needs. Files from before they were noted do not say.
    `messages` is what the implementation warned of and printed meanwhile.
    """

    law: str
    family: str
    sentence: str
    exact: bool
    implementation: str
    device: str
    dtype: str
    outcome: Outcome
    reason: str = ""
    examples: int = 0
    margin: float | None = None
    seconds: float = 0.0
    counterexample: Counterexample | None = None
    used: list[str] | None = None
    messages: list[Message] = []
    tested: Tested | None = None


class Kill(msgspec.Struct, frozen=True):
    """One law broken on one planted bug: examples and seconds of that law alone."""

    law: str
    family: str
    examples: int
    seconds: float


class Planted(msgspec.Struct, frozen=True, tag="planted"):
    """What became of a mutant (a planted bug) or of a control (correct code), and what the first kill cost.

    `matrix` says whether the laws after the first that broke were checked as well. `examples` and `seconds`
    count from the first law on: to the kill, shrinking included, or all there were.
    """

    name: str
    kind: str
    operation: str
    dtype: str
    sentence: str
    threads: list[str] = []
    kills: list[Kill] = []
    matrix: bool = False
    examples: int = 0
    seconds: float = 0.0
    sizes: dict[str, int] = {}
    message: str = ""
    profile: str = ""


class Tally(msgspec.Struct, frozen=True, kw_only=True, tag="tally"):
    """The verdicts of an earlier run, counted by outcome, and the examples behind them. Written by `history`."""

    outcomes: dict[str, int]
    examples: int
