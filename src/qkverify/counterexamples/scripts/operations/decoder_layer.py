"""The textbook form of decoder layer, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.layers import of_layer, seen
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """Causal self-attention, attention to the memory, feed-forward."""
    length, visible = call.arguments[0].shape[1], seen(call, "memory_lengths", call.arguments[1].shape[1])
    return [*of_layer(call, run), "source = numbers(memory)",
            f'y = added(numbers(x), 1, lambda y: attend(y, y, "", np.tri({length}, dtype=bool)))',
            f'y = added(y, 2, lambda y: attend(y, source, "cross_", {visible}))', "exact = added(y, 3, feed)"]  # fmt: skip
