"""What went wrong, in one sentence: a wrong result is compared with what well-known mistakes would give.

A mistake is a variant of the reference, and it is believed only if it predicts, within its own derived bound, what the
implementation returns on the counterexample and on a few dozen further problems made from it: wherever the mistake matters
the implementation is wrong in the same way, and everywhere else it is right. A mistake that shows on some problems only
("with causality") must be right about where. On the tiny problems that counterexamples shrink to, many mistakes give the same
numbers; the further problems tell them apart, with random arrays, sizes that all differ, options added and taken away.

Where no mistake fits, it is said where the wrong elements are if that is simple, and else nothing: rather silent than wrong.
Dropout, which is a matter of chance, has a table of its own, and so has each operation other than attention: there a
mistake is named only if it is the sole one that explains everything.

The ugly spot: mistakes of attention that fit all observations are named in the order of the table, which goes from special
to general.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from qkverify.diagnosis.attention import sentence_of, wrong_first
from qkverify.diagnosis.dropout import dropout, unasked
from qkverify.diagnosis.mistakes import MISTAKES
from qkverify.diagnosis.observing import Observer, fresh
from qkverify.diagnosis.operations import other_operation
from qkverify.problems import Problem
from qkverify.runs import Run

__all__ = ["MISTAKES", "diagnose", "looks_like"]

SECONDS = 1.0  # what a diagnosis may cost: no call of the implementation starts after that


def looks_like(run: Run) -> str:
    """The diagnosis of the example that failed last on a run, or nothing."""
    until = time.perf_counter() + SECONDS
    try:
        if run.implementation.operation != "attention":
            return other_operation(run, until)
        with np.errstate(all="ignore"):
            said = _of_dropout(dropout if "share" in run.failing else unasked, run, until)
            found = (_sentence(run, problem, until) for problem in wrong_first(run, until))
            said = said or next((text for text in found if text), "")
            return said or _of_dropout(dropout, run, until)
    except Exception:  # a failure is worth more than its diagnosis
        return ""


def _of_dropout(check: Callable[[Run, float], str], run: Run, until: float) -> str:
    """What is wrong with dropout where it is offered; nothing where the sizes that show it are refused."""
    try:
        return check(run, until) if run.offers("dropout") else ""
    except Exception:  # as above
        return ""


def diagnose(run: Run, problem: Problem) -> str:
    """One sentence that says which well-known mistake explains what a run returns on a problem; empty when none does.

    The implementation is called again on the problem and on others made from it, for about a second; the run itself keeps
    its state.
    """
    try:
        return _sentence(run, problem, time.perf_counter() + SECONDS)
    except Exception:  # as above
        return ""


def _sentence(run: Run, problem: Problem, until: float) -> str:
    if time.perf_counter() > until:
        return ""
    with np.errstate(all="ignore"):
        return sentence_of(Observer(fresh(run), problem, until))
