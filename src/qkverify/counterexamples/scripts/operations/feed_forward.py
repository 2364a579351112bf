"""The textbook form of feed forward, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """Two linear maps, a relu between them."""
    return [DEFINITION, "hidden = np.maximum(numbers(x) @ numbers(w_1) + numbers(b_1), 0)",
            "exact = hidden @ numbers(w_2) + numbers(b_2)"]  # fmt: skip
