"""A counterexample as a script that a person can paste into a bug report: NumPy, the framework, the function, nothing else.

`script(law, run)` replays the failing example on a `Recorder`, which keeps every call and what came back, and then asks for
each of these in turn whether it shows the failure; the first one whose assertion fails becomes the text:

    an exception, a wrong shape or dtype, an input that was written, sizes that must be refused and are not
    one call against a plain float64 computation that stands in the script   (most laws: output, log-sum-exp, gradients)
    two calls that must agree bit for bit                                    (poison in what nobody may read)
    calls that begin at a seed                                               (dropout, and what differs from call to call)

Every text is tried here before it is kept: it must fail, with the numbers that the replay saw. So a law on a derived quantity
whose single calls all hold gets no script, and neither does a function that no module has under a name. What is ugly: the
trial runs in this process. A function may remember earlier calls, so its file is loaded once more for a second trial; where
that is slow or cannot be done, as for what is installed, such a memory goes unseen.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qkverify.counterexamples.scripts.dropout import generators_kept
from qkverify.counterexamples.scripts.function_source import FunctionSource
from qkverify.counterexamples.scripts.recorder import Recorder
from qkverify.counterexamples.scripts.script_writer import Sheet
from qkverify.counterexamples.scripts.showing import by_chance, cases
from qkverify.runs.run import Run

if TYPE_CHECKING:
    from qkverify.verification.laws import Law

__all__ = ["script"]


def script(law: Law, run: Run) -> str:
    """The script for the failing example of a run, or nothing where none would fail faithfully. Raises nothing."""
    with generators_kept():
        return _script(law, run)


def _script(law: Law, run: Run) -> str:
    try:
        place = FunctionSource.of(run.implementation)
        recorder = Recorder(run)
        broken = recorder.replayed(law, run.failing)
        if place is None:
            return ""
        for case in cases(law, recorder, broken) if broken is not None else by_chance(recorder):
            with contextlib.suppress(Exception):  # of one form; another may do
                sheet = Sheet(law, recorder, place, case)
                if sheet.fails_as_found():
                    return sheet.text()
    except Exception:  # a failure's message comes first, whatever becomes of its script
        return ""
    return ""
