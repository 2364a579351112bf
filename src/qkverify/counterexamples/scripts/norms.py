"""What the textbook forms of the norms share."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run


def constants(call: Recorded, run: Run) -> tuple[str, str]:
    """What is added inside of the root, and the gain: as the call was told, else as the function has them."""
    meant = run.meant(**call.options)
    offset = meant["offset"]
    return repr(float(meant["eps"])), f"({offset!r} + numbers(weight))" if offset else "numbers(weight)"
