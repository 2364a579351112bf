"""The textbook form of cached attention, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.decoding import one_sequence
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """The new tokens of each entry after those that its cache holds."""
    held = [f"np.concatenate([numbers({n}_cache)[b, :, :n], numbers({n})[b]], axis=1)" for n in ("key", "value")]  # fmt: skip
    return [*one_sequence(call, run, causal=True), "exact = np.stack([", "    alone(numbers(query)[b],",
            f"          {held[0]},", f"          {held[1]})",
            "    for b, n in enumerate(numbers(lengths).astype(int))", "])"]  # fmt: skip
