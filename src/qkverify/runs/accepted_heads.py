"""Whether a function gives slopes for every number of heads, or for powers of two alone."""

from __future__ import annotations

from qkverify.runs.run import Run

POWERS = "powers of two"


def heads(run: Run) -> str | None:
    """`POWERS` if four heads have slopes and three raise an error, else None. Raises what four heads raise."""
    run.call(4, shape=(4,))
    try:
        run.call(3, shape=(3,))
    except Exception:  # whatever it raises: four heads show that the number is at fault
        return POWERS
    return None


def accepted(run: Run, number: int) -> bool:
    """Whether a number of heads is one that the function takes."""
    return run.semantics.get("heads") != POWERS or number & (number - 1) == 0
