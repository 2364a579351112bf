"""The textbook form of softmax, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    return [DEFINITION, "s = numbers(scores)",
            "weights = np.exp(s - s.max(axis=-1, keepdims=True))",
            "exact = weights / weights.sum(axis=-1, keepdims=True)"]  # fmt: skip
