"""The textbook form of SwiGLU, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """Two maps, of which one is the gate of the other, and a third."""
    return [DEFINITION, "gate, up = numbers(x) @ numbers(w_gate), numbers(x) @ numbers(w_up)",
            "small = np.exp(-np.where(gate.real > 0, gate, -gate))  # at most one",
            "exact = (gate * np.where(gate.real > 0, 1, small) / (1 + small) * up) @ numbers(w_down)"]  # fmt: skip
