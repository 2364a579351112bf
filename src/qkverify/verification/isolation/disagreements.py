"""What is said where results that the judge asked for disagree with verdicts from beside the function."""

from __future__ import annotations

import math

from qkverify import foreign_text
from qkverify.counterexamples import store
from qkverify.errors import LawViolation
from qkverify.problem import traits
from qkverify.results import Counterexample
from qkverify.runs.assertions import Evidence, number
from qkverify.verification.isolation.outside_run import OutsideRun
from qkverify.verification.laws import Law, explain

HARNESS = "not verified, because qkverify itself failed when it asked for results from outside of the function's process: "

NEXT = "to see what it returns, call it on this problem in a fresh Python, without qkverify"
MISSED = "this problem was drawn outside of the function's process; on those drawn inside, the law was said to hold"


def raises(error: str) -> str:
    """A call that is asked for raises an error, and the law that makes it holds beside the function."""
    return ("not verified, because a call that was asked for from outside of the function's process raises, and the same law "
            f"holds inside of it: {error}")  # fmt: skip


def refuses(refusal: str) -> str:
    """Every call that is asked for is refused, and most were taken beside the function."""
    return ("not verified, because every result that was asked for from outside of the function's process is refused, and inside "
            f"of it most calls of the same law were not: {refusal}")  # fmt: skip


def message(law: Law, run: OutsideRun, broken: Exception, *, replay: str, again: bool) -> str:
    """As a person reads it."""
    said = explain(broken, law, run, replay=replay, diagnosis="")
    return foreign_text.escaped(f"{said}\n  {sentence(broken, again=again)}\n  {NEXT}")


def example(law: Law, run: OutsideRun, broken: Exception, *, again: bool) -> Counterexample:
    """A law that is broken outside, `again` or only once, and holds inside."""
    worst, replay = _worst(broken), store.store(law, run, scripted=False)
    return Counterexample(
        message=message(law, run, broken, replay=replay, again=again),
        problem=run.problems[0].describe() if run.problems else "",
        got=number(worst.got) if worst else foreign_text.shown(broken), exact=number(worst.exact) if worst else "",
        bound=f"{worst.bound:.2g}" if worst else "", margin=worst.margin if worst else None,
        location=f"{worst.what}{list(worst.location)}" if worst else "", replay=replay,
        traits=traits.of(run.problems),
    )  # fmt: skip


def _worst(broken: Exception) -> Evidence | None:
    evidence = broken.evidence if isinstance(broken, LawViolation) else None
    return evidence if isinstance(evidence, Evidence) else None


def sentence(broken: Exception, *, again: bool) -> str:
    """What came back, and what it means, in one line."""
    worst = _worst(broken)
    if worst is None:
        wrong = f"break it ({foreign_text.shown_line(broken)})"
    elif math.isfinite(worst.margin):
        wrong = f"exceed its bound by a factor of {worst.margin:.3g}"
    else:
        wrong = f"break it (got {number(worst.got)}, exact {number(worst.exact)})"
    if not again:
        return (f"results that were asked for from outside of the function's process {wrong} once, and not when they were asked "
                "for again: the result depends on earlier calls, or is random")  # fmt: skip
    return (f"the law holds inside of the function's process, where the function can change what checks it; results that were "
            f"asked for from outside {wrong}: the function, or what it imports, changed the process, or its results depend on "
            "who asks or on earlier calls")  # fmt: skip
