"""Successive halving under a budget of time: everybody is timed a little, the best third twice as long, and so on.

A contest is one choice to be made: candidates that do the same, timed on the same cases, turn by turn as everywhere
(`qkverify.timing.sampling`). A stage goes through all contests before the next one begins, so that every contest has an answer
when the time is up; the answer is as good as the last stage that it came through.

What was found is kept in a journal, one line of JSON for each, written at once. A run that was killed is started again
with the same journal: nothing that stands there is measured again. Where the first call of a candidate began and never
ended, it had ended the process itself, and it is not tried again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from qkverify.errors import raised
from qkverify.timing.sampling import SamplingPlan, Subject, interleave

STAGES = 3
FIRST_ROUNDS = 3  # of the first stage, twice as many in the next
KEPT = 3  # one of so many goes on to the next stage
PLAN = SamplingPlan(repeats=1, sample_seconds=0.0, warm=True)
ENDED = "its first call ended the process"


class DeviceLost(Exception):
    """The device answers no more: what fails from now on says nothing of a candidate."""


class Contest(NamedTuple):
    """The names of the candidates, the present choice first, and the cases that they are timed on."""

    name: str
    candidates: Sequence[str]
    cases: Sequence[int]


class Ranking(NamedTuple):
    """Geometric means over the cases, in seconds of a call, the best first; and the stage that they are from."""

    stage: int
    seconds: Mapping[str, float]


class Journal:
    """What is known, by its key. Lines of a file that were written about something else are passed over."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._known = path, dict[tuple[Any, ...], dict[str, Any]]()
        text, counts = path.read_text() if path.exists() else "", False
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that a killed run was writing
                continue
            if "about" in entry:
                counts = entry["about"] == about
            elif counts:
                self._known[tuple(entry.pop("key"))] = entry
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("\n" if text and not text.endswith("\n") else "")
        if not counts:
            self._write({"about": about})

    def get(self, *key: Any) -> dict[str, Any] | None:
        return self._known.get(key)

    def put(self, *key: Any, **record: Any) -> dict[str, Any]:
        self._known[key] = record
        self._write({"key": key, **record})
        return record

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass
class Session:
    """One run. `healthy` waits for the device and raises DeviceLost where it answers no more.

    `out` are the candidates that take part no longer, by contest and name, and why.
    """

    journal: Journal
    has_time: Callable[[], bool]
    healthy: Callable[[], None] = lambda: None
    out: dict[tuple[str, str], str] = field(default_factory=dict)

    def admit(self, contest: Contest, check: Callable[[Contest, str], str]) -> Contest:
        """The contest of those that pass. `check` gives the reason why one does not, "" for none, or raises."""
        passed = []
        for name in contest.candidates:
            key = ("checked", contest.name, name)
            if self.journal.get(*key) or self.journal.get("begun", *key) or self.has_time():
                reason = self._first(key, lambda name=name: check(contest, name))  # type: ignore[misc]
            else:
                reason = "the time was up before it was checked"
            if reason:
                self.out[contest.name, name] = reason
            else:
                passed.append(name)
        return contest._replace(candidates=passed)

    def halve(
        self, contests: Sequence[Contest], subject: Callable[[Contest, str, int], Subject]
    ) -> dict[str, Ranking]:
        """The ranking of each contest that there was time for. `subject` makes a candidate ready for a case, or raises.

        The first candidate, the present choice, stays to the end: so the last stage says what a change is worth.
        """
        rankings: dict[str, Ranking] = {}
        alive = {contest.name: list(contest.candidates) for contest in contests}
        for stage in range(STAGES):
            for contest in contests:
                names = alive[contest.name]
                if len(names) < (2 if stage else 1):  # nothing to choose from, or nobody left
                    continue
                seconds = self._stage(contest, names, stage, subject)
                if seconds is None:
                    return rankings
                order = sorted(seconds, key=lambda name: seconds[name])
                rankings[contest.name] = Ranking(stage, {name: seconds[name] for name in order})
                kept = order[: math.ceil(len(order) / KEPT)]
                present = contest.candidates[0]
                alive[contest.name] = kept + [present] * (present in order and present not in kept)
        return rankings

    def _stage(
        self,
        contest: Contest,
        names: Sequence[str],
        stage: int,
        subject: Callable[[Contest, str, int], Subject],
    ) -> dict[str, float] | None:
        """Seconds of those that came through every case; None where the time was up before."""
        logs: dict[str, list[float]] = {name: [] for name in names}
        for case in contest.cases:
            key, rounds = ("timed", contest.name, stage, case), FIRST_ROUNDS * 2**stage
            makers = {name: lambda name=name, case=case: subject(contest, name, case) for name in logs}  # type: ignore[misc]
            times = self.timed(key, makers, rounds)
            if times is None:
                return None
            for name, seconds_or_reason in times.items():
                if isinstance(seconds_or_reason, str):
                    self.out[contest.name, name] = seconds_or_reason
                    del logs[name]
                else:
                    logs[name].append(math.log(median(seconds_or_reason)))
        return {name: math.exp(sum(each) / len(each)) for name, each in logs.items()}

    def timed(
        self, key: tuple[Any, ...], makers: Mapping[str, Callable[[], Subject]], rounds: int
    ) -> dict[str, list[float] | str] | None:
        """Seconds of each subject in the same rounds, or why there are none; None where there is no time for it."""
        known = {name: self.journal.get(*key, name) for name in makers}
        if any(record is None for record in known.values()):
            if not self.has_time():
                return None
            measured = self._measured(key, makers, rounds)
            known = {name: self.journal.put(*key, name, **measured[name]) for name in makers}
        return {
            name: record["seconds"] or record["reason"]
            for name, record in known.items()
            if record is not None
        }

    def _measured(
        self, key: tuple[Any, ...], makers: Mapping[str, Callable[[], Subject]], rounds: int
    ) -> dict[str, dict[str, Any]]:
        ready, records = dict[str, Subject](), dict[str, dict[str, Any]]()

        def make(name: str) -> str:
            ready[name] = makers[name]()
            ready[name].call()
            return ""

        for name in makers:
            reason = self._first(("ready", *key, name), lambda name=name: make(name), again=True)  # type: ignore[misc]
            if reason:
                ready.pop(name, None)
                records[name] = {"seconds": [], "reason": reason}
        taken = interleave(
            ready, budget_seconds=math.inf, plans=dict.fromkeys(ready, PLAN), most_rounds=rounds
        )
        self.healthy()
        for name, samples in taken.items():
            seconds = [float(f"{each:.6g}") for each in samples.seconds]  # no clock has more digits
            records[name] = {"seconds": seconds, "reason": samples.reason}
        return records

    def _first(self, key: tuple[Any, ...], action: Callable[[], str], *, again: bool = False) -> str:
        """What `action` says, or raises, or is known to have said; with `again` it is done in every process that needs it."""
        known = self.journal.get(*key)
        if known is None and self.journal.get("begun", *key) is not None:
            known = self.journal.put(*key, reason=ENDED)
        if known is not None and (known["reason"] or not again):
            return str(known["reason"])
        if known is None:
            self.journal.put("begun", *key)
        try:
            reason = action()
        except Exception as error:  # the candidate's own failure, and the others go on
            reason = raised(error)
        lost = self._lost()
        if known is None:
            self.journal.put(*key, reason=reason or ENDED if lost else reason)
        if lost is not None:
            raise lost
        return reason

    def _lost(self) -> DeviceLost | None:
        try:
            self.healthy()
        except DeviceLost as lost:
            return lost
        return None
