"""The textbook form of layer norm, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.norms import constants
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """Less the mean, by the deviation."""
    eps, weight = constants(call, run)
    return [DEFINITION, "y = numbers(x)", "centred = y - y.mean(axis=-1, keepdims=True)",
            f"deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + {eps})",
            f"exact = centred / deviation * {weight} + numbers(bias)"]  # fmt: skip
