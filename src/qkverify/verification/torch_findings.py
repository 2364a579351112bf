"""Failures of a function that are torch's: it returns what torch's own scaled_dot_product_attention does, which has a finding.

This is said only where torch returns the same numbers, bit for bit, on every problem of the counterexample, and a finding of
that back end covers the law on this device and dtype, and explains the problems. Whether the failure counts is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from qkverify.contract import Finding, Implementation, registry
from qkverify.counterexamples.diagnosis.observing import fresh
from qkverify.runs.run import Run
from qkverify.verification.laws import Law

BACK_ENDS = "torch_sdpa-"  # how the names of the folder's implementations begin that call torch's function


def said_of_torch(law: Law, run: Run, run_of: Callable[[Implementation, str, str], Run]) -> str:
    """A line for the message of a failed law, or nothing; `run_of` makes a run of an implementation on a device in a dtype."""
    own = run.implementation
    if (
        own.arrays != "torch"
        or own.operation != "attention"
        or own.name.startswith(BACK_ENDS)
        or not run.problems
    ):
        return ""
    for other in registry.load_folder():
        known = other.findings_at(run.device, run.dtype).get(law.name) if _may_be(other, run) else None
        if known is None or known.listed or not known.explains(run.problems):
            continue
        if _same(fresh(run), run_of(other, run.device, run.dtype), run.problems):
            return _line(known)
    return ""


KNOWN = "known of torch"
NEXT = "all of it is torch's own: a file of known failures accepts it until torch mends it (`qkverify init TARGET` writes one)"


def _line(known: Finding) -> str:
    what = f"{known.sentence} ({known})" if known.sentence else str(known)
    return f"  {KNOWN}     torch's own scaled_dot_product_attention does the same: finding {what}"


def next_step(messages: Sequence[str]) -> str:
    """What to do where each of these counterexamples is a finding about torch; nothing where one is not, or there is none."""
    return NEXT if messages and all(f"  {KNOWN}  " in message for message in messages) else ""


def _may_be(other: Implementation, run: Run) -> bool:
    return other.name.startswith(BACK_ENDS) and run.device in other.devices and run.dtype in other.dtypes


def _same(run: Run, torchs: Run, problems: Iterable[Any]) -> bool:
    """Whether both return the same on every problem; the gradients too, where they are asked for."""
    try:
        with np.errstate(all="ignore"):
            return all(_same_on(run, torchs, problem) for problem in {id(p): p for p in problems}.values())
    except Exception:  # one of the two does not take the problem: they are not the same
        return False


def _same_on(run: Run, torchs: Run, problem: Any) -> bool:
    if not np.array_equal(run.values(problem), torchs.values(problem), equal_nan=True):
        return False
    if problem.upstream is None:
        return True
    ours, theirs = run.gradient_values(problem), torchs.gradient_values(problem)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours
    )
