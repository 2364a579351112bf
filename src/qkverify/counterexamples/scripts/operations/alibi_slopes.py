"""The textbook form of alibi slopes, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    heads = int(call.arguments[0])
    power = 2 ** max(heads.bit_length() - 1, 0)
    return [DEFINITION,
            f"slopes = 2.0 ** (-8.0 / {power} * np.arange(1, {power + 1}))",
            f"between = 2.0 ** (-4.0 / {power} * np.arange(1, {2 * power + 1}, 2))",
            f"exact = np.concatenate([slopes, between])[:{heads}]"]  # fmt: skip
