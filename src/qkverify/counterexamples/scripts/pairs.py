"""Which elements make a pair, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run


def interleaved(call: Recorded, run: Run) -> bool:
    """Whether neighbours make a pair: as the call was told, else as the function has it."""
    return bool(run.meant(layout=call.options.get("layout"))["layout"] == "interleaved")


def joined(call: Recorded, run: Run, first: str, second: str, shape: str) -> str:
    """Pairs as neighbours, or as two halves."""
    if interleaved(call, run):
        return f"exact = np.stack([{first}, {second}], axis=-1).reshape({shape})  # neighbours make a pair"
    return f"exact = np.concatenate([{first}, {second}], axis=-1)  # one from each half makes a pair"
