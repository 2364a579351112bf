"""The textbook form of rotary, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.pairs import interleaved, joined
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    size = call.arguments[0].shape[-1]
    halves = f"y[..., :{size // 2}], y[..., {size // 2}:]"
    pair = "y[..., 0::2], y[..., 1::2]" if interleaved(call, run) else halves
    return [DEFINITION, "y = numbers(x)",
            f"angle = numbers(positions)[:, None] / 10000.0 ** (np.arange(0, {size}, 2) / {size})", f"a, b = {pair}",
            "first, second = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)",
            joined(call, run, "first", "second", "y.shape")]  # fmt: skip
