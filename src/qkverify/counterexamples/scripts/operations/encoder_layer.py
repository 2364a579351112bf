"""The textbook form of encoder layer, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.layers import of_layer, seen
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """Self-attention, feed-forward."""
    visible = seen(call, "key_lengths", call.arguments[0].shape[1])
    return [*of_layer(call, run), f'y = added(numbers(x), 1, lambda y: attend(y, y, "", {visible}))',
            "exact = added(y, 2, feed)"]  # fmt: skip
