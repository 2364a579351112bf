"""The textbook form of RMS norm, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.norms import constants
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """By the root of the mean square."""
    eps, weight = constants(call, run)
    return [DEFINITION, "y = numbers(x)",
            f"exact = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + {eps}) * {weight}"]  # fmt: skip
