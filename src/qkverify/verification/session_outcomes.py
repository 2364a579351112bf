"""What a pytest session says of each cell: the verdicts of its tests, which reports carry from every process, as `outcomes`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qkverify.results import Verdict, verdict_of
from qkverify.verification import required_precision
from qkverify.verification.checking import VerificationPlan, applicable, law_book, outcome_of
from qkverify.verification.outcomes import CellOutcome, without_cell


def in_short(verdict: Verdict) -> Verdict:
    """A verdict without what its outcome does not need: every test's report carries one."""
    return msgspec.structs.replace(verdict, counterexample=None, messages=[])


def of_session(lines: Iterable[str], planned: VerificationPlan, required: str = "") -> dict[str, CellOutcome]:
    """The outcome of each cell of which laws were run, from verdicts as JSON, and of each target without a cell.

    `required` is the precision that the session requires, if any. Laws that were selected, by -k say, and of which none applies
    to a cell are skipped tests, as elsewhere: nothing is said.
    """
    verdicts: dict[str, list[Verdict]] = {}
    for verdict in map(verdict_of, lines):
        name = f"{verdict.implementation}-{verdict.device}-{verdict.dtype}"
        verdicts.setdefault(name, []).append(verdict)
    outcomes = {target: without_cell(reason) for target, reason in planned.idle.items()}
    for cell in planned.cells:
        if mine := verdicts.get(str(cell)):
            mine += required_precision.verdicts(mine, required)
            every = {law.name for law in applicable(law_book(), cell)} | {verdict.law for verdict in mine}
            outcome = outcome_of(cell, mine, len(every))
            if outcome.applied or not outcome.selected:
                outcomes[str(cell)] = outcome
    return outcomes
