"""The textbook form of paged attention, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.decoding import one_sequence
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """The pages of each entry, in the order of its table; the queries are its last tokens."""
    held = [f"numbers({n}_pages)[numbers(page_table)[b].astype(int)].reshape(-1, *{n}_pages.shape[2:])[:n].swapaxes(0, 1)"
            for n in ("key", "value")]  # fmt: skip
    return [*one_sequence(call, run, causal=True), "exact = np.stack([", "    alone(numbers(query)[b],",
            f"          {held[0]},", f"          {held[1]})",
            "    for b, n in enumerate(numbers(lengths).astype(int))", "])"]  # fmt: skip
