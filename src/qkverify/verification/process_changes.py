"""What is said of a cell whose calls changed settings of their process, or did to it what a law did not see.

It is one failure, whatever many laws ran meanwhile: that of the law about the process, or of the last law that held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from qkverify import foreign_text
from qkverify.results import OUTCOMES_BROKEN, Counterexample, Verdict

ABOUT_THE_PROCESS = ("global_state_is_left_alone", "calls_leave_the_process_alone")  # laws
NAMED = 6  # settings

Outcome = Literal["failed", "crashed", "timed out", "error"]


def blamed(verdicts: Sequence[Verdict], changes: Sequence[str]) -> list[Verdict]:
    """The verdicts, one of them a failure if calls changed these settings (see `process_settings`), in probes or in any law.

    Where the law about the process is broken it has said so.
    """
    if not changes or any(v.law in ABOUT_THE_PROCESS and v.outcome in OUTCOMES_BROKEN for v in verdicts):
        return list(verdicts)
    more = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return blamed_for(verdicts, f"a call changed {'; '.join(changes[:NAMED])}{more}", "failed")


def blamed_for(verdicts: Sequence[Verdict], sentence: str, outcome: Outcome) -> list[Verdict]:
    """The verdicts, the one that this is about with that outcome; as they are if no law held."""
    laws = [verdict.law for verdict in verdicts if verdict.outcome == "passed"]
    law = next((name for name in ABOUT_THE_PROCESS if name in laws), laws[-1] if laws else "")
    return [of(verdict, sentence, outcome) if verdict.law == law else verdict for verdict in verdicts]


def of(verdict: Verdict, sentence: str, outcome: Outcome) -> Verdict:
    """The verdict as a failure for this reason."""
    cell = f"{verdict.implementation}-{verdict.device}-{verdict.dtype}"
    text = f"{verdict.law}: {verdict.sentence}\n  implementation     {cell}\n  {sentence}"
    example = Counterexample(message=foreign_text.escaped(text), problem="", got=foreign_text.escaped(sentence), exact="",
                             bound="", margin=None, location="", replay="")  # fmt: skip
    return msgspec.structs.replace(verdict, outcome=outcome, reason=example.got, counterexample=example)
