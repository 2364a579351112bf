"""The textbook form of positional encoding, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.pairs import joined
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    return [DEFINITION,
            "angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)",
            joined(call, run, "np.sin(angle)", "np.cos(angle)", "length, dim")]  # fmt: skip
