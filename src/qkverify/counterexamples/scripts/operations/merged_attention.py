"""The textbook form of merged attention, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """The weighted mean of the outputs, and the logarithm of the sum of the weights."""
    base = run.meant()["base"]
    power, logarithm = ("np.exp", "np.log") if base == "e" else ("np.exp2", "np.log2")
    which = list(call.got).index(call.judged) if not call.upstream else 0
    return [DEFINITION, "a, b = numbers(lse_a), numbers(lse_b)", "largest = np.maximum(a.real, b.real)",
            "shift = np.where(np.isfinite(largest), largest, 0)", f"w_a, w_b = {power}(a - shift), {power}(b - shift)",
            "total = w_a + w_b", "some = np.where(total == 0, 1, total)",
            "output = (w_a[..., None] * numbers(o_a) + w_b[..., None] * numbers(o_b)) / some[..., None]",
            f"parts = output, np.where(total == 0, -np.inf, {logarithm}(some) + shift)", f"exact = parts[{which}]"]  # fmt: skip
