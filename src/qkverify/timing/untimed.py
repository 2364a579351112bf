"""Cells without a time, by whether they could have run: "fastest" is said of a case only if none of these was left out."""

from __future__ import annotations

from collections.abc import Iterable

from qkverify.results import Timing

# How the reasons begin of cells that can run their workload and were not timed: what is known against them bars the time
# (`marks`; the last three in older files), the budget had no room, or a process died over a neighbour.
LEFT_OUT = (
    "known failure:",
    "known finding:",  # in older files
    "breaks ",
    "not verified",
    "the time budget",
    "while its group was timed",
    "while it was timed",
    "crashed:",
    "timed out:",
    "error:",
)


# By the output check, by the roofline, by itself, or with its process.
REFUSED = ("the timed call", "a call in ", "raised ", "while it was timed")


def left_out(timings: Iterable[Timing]) -> list[Timing]:
    """Those that could run here and were not timed. Who refuses, is not here, fails or is wrong is none of them."""
    return [t for t in timings if not t.seconds and t.reason.startswith(LEFT_OUT)]


def refused(timings: Iterable[Timing]) -> list[Timing]:
    """Those whose call gave a wrong result, or a time that is not believed."""
    return [t for t in timings if not t.seconds and t.reason.startswith(REFUSED)]


def names(timings: Iterable[Timing]) -> str:
    """The implementations of these timings, each once."""
    return ", ".join(dict.fromkeys(t.implementation for t in timings))
