"""The textbook form of cross entropy, as lines of a script."""

from __future__ import annotations

from typing import Any

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """The loss of each token."""
    smoothing: Any = call.options.get("smoothing", 0.0)
    classes, labels = call.arguments[0].shape[-1], "numbers(targets).astype(int)"
    return [DEFINITION, "s = numbers(scores)", "s = s - s.max(axis=-1, keepdims=True)",
             "logarithms = s - np.log(np.exp(s).sum(axis=-1, keepdims=True))",
             f"wanted = {1 - smoothing!r} * np.eye({classes})[{labels}] + {smoothing!r} / {classes}",
            "exact = -(wanted * logarithms).sum(axis=-1)"]  # fmt: skip
