"""What is said of a law whose worker died: how, where, and on which problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from qkverify import foreign_text
from qkverify.counterexamples import store
from qkverify.problem import traits
from qkverify.problem.attention_problem import Problem
from qkverify.results import Counterexample, Verdict
from qkverify.runs import watch
from qkverify.runs.run import Run
from qkverify.verification import checking
from qkverify.verification.laws import Law

if TYPE_CHECKING:
    from qkverify.verification.isolation.exchange import Describe

Outcome = Literal["crashed", "timed out", "error"]
ENOUGH = {
    "crashed": 3,
    "timed out": 2,
    "error": 3,
}  # deaths of one cause, after which the other laws are not checked


@dataclass(frozen=True)
class Death:
    """How a worker ended: a sentence about "its process" or "a call"."""

    outcome: Outcome
    sentence: str

    @property
    def enough(self) -> int:
        """How many of this kind end the checks of a cell."""
        return ENOUGH[self.outcome]


def of_words(words: str) -> Death:
    """The death of a process that "was killed by SIGSEGV" or "ended with exit code 0"."""
    hint = ": the system may have run out of memory" if words.endswith("SIGKILL") else ""
    return Death("crashed", f"its process {words}{hint}")


def of_call(seconds: float) -> Death:
    """A call that did not come back."""
    return Death("timed out", f"a call did not return within {seconds:g} s")


def of_silence(seconds: float) -> Death:
    """A worker in which neither a call nor an example began or ended."""
    return Death("timed out", f"its process did nothing for {seconds:g} s, and no call was running")


def of_end(seconds: float) -> Death:
    """A worker that was told to end, and did not."""
    return Death("timed out", f"its process did not end within {seconds:g} s after the last call: a thread, or what was "
                 "registered with atexit, goes on")  # fmt: skip


def after_the_last_call(death: Death) -> Death:
    """A worker that died while it ended."""
    return Death(death.outcome, f"{death.sentence} after the last call")


def of_children(names: Sequence[str]) -> Death:
    """A worker that ended, and whose children did not."""
    return Death("crashed", f"its process left another process behind: {', '.join(names)}")


def of_forgery(error: Exception) -> Death:
    """A worker whose answer is none."""
    return Death(
        "error", f"its process wrote to the judge what is no answer: {foreign_text.shown_line(error)}"
    )


def of_memory(held: int, limit: int) -> Death:
    """A worker that held more than it may; both in bytes."""
    return Death(
        "crashed",
        f"out of memory: its process held {_in_gib(held)}, and the limit is {_in_gib(limit)} (--memory)",
    )


def _in_gib(size: int) -> str:
    return f"{size / 2**30:.2g} GiB"


def verdict(law: Law, cell: checking.Cell, death: Death, example: Counterexample | None = None) -> Verdict:
    """The verdict of a law that was being checked. A known failure that a file lists is a finding."""
    known = cell.implementation.findings_at(cell.device, cell.dtype).get(law.name)
    if known is not None and known.listed:
        return _verdict(law, cell, "finding", str(known), example)
    return _verdict(law, cell, death.outcome, death.sentence, example)


def unchecked(laws: Sequence[Law], cell: checking.Cell, why: str) -> list[Verdict]:
    """The verdicts of laws that were not checked after that."""
    return [_verdict(law, cell, "error", f"not verified, because {why}") for law in laws]


def _verdict(
    law: Law, cell: checking.Cell, outcome: str, reason: str, example: Counterexample | None = None
) -> Verdict:
    return Verdict(law=law.name, family=law.family, sentence=law.sentence, exact=law.exact,
                   implementation=cell.implementation.name, device=cell.device, dtype=cell.dtype,
                   outcome=outcome, reason=reason, counterexample=example)  # type: ignore[arg-type]  # fmt: skip


def plain(law: Law, cell: checking.Cell, death: Death, place: str) -> Counterexample:
    """What is known of the death without the arguments of the call."""
    return _example(_message(law, str(cell), death.sentence, place, [], ""), death, "", place)


def described(request: Describe) -> Verdict:
    """In a worker: the counterexample of the death, with the arguments that were shown last; they are stored for a replay."""
    cell = checking.cell_at(request.cell.found())
    (law,) = checking.laws_named([request.law], request.files)
    death = Death("crashed", request.death)
    run = Run(cell.implementation, cell.device, cell.dtype)
    run.failing = dict(watch.last_arguments(request.arguments))
    run.problems = [value for value in run.failing.values() if isinstance(value, Problem)]
    replay = store.store(law, run, scripted=False) if run.failing else ""
    lines = [f"  {name:18} {foreign_text.shown_line(repr(value))}" for name, value in run.failing.items()
             if not isinstance(value, Problem) and value is not None]  # fmt: skip
    if run.problems:
        first, *rest = run.problems[0].describe().splitlines()
        lines = [f"  problem            {first}", *(f"    {line}" for line in rest), *lines]
    message = _message(law, str(cell), death.sentence, request.place, lines, replay)
    example = _example(message, death, replay, request.place)
    problem = run.problems[0].describe() if run.problems else ""
    return verdict(law, cell, death, msgspec.structs.replace(
        example, problem=problem, traits=traits.of(run.problems)))  # fmt: skip


def _message(law: Law, cell: str, sentence: str, place: str, lines: Sequence[str], replay: str) -> str:
    at = f" at {place}" if place else ""
    last = [f"  again:   qkverify replay {replay}"] if replay else []
    whole = [
        f"{law.name}: {law.sentence}",
        f"  implementation     {cell}",
        *lines,
        f"  {sentence}{at}",
        *last,
    ]
    return foreign_text.escaped("\n".join(whole))


def _example(message: str, death: Death, replay: str, place: str) -> Counterexample:
    return Counterexample(message=message, problem="", got=death.sentence, exact="", bound="", margin=None, location="",
                          replay=replay, line=place)  # fmt: skip


def place_of(said: str, file: str) -> str:
    """Where a process died, by the report of Python's fault handler: "mine.py:12", the innermost line of a file; or nothing."""
    frames = [line.split('"') for line in said.splitlines() if line.startswith('  File "')]
    for _, path, rest in (frame for frame in frames if len(frame) == 3):
        if path == file:
            return f"{foreign_text.shown_line(Path(path).name)}:{rest.split()[2].rstrip(',')}"
    return ""
