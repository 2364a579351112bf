"""The textbook form of multi head attention, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    heads = call.options["heads"]
    length = call.arguments[0].shape[1]
    lines = [DEFINITION, "y = numbers(x)",
             f"q, k, v = ((y @ numbers(w)).reshape(*y.shape[:2], {heads}, -1).swapaxes(1, 2) for w in (w_q, w_k, w_v))",
             "scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5"]  # fmt: skip
    if call.options.get("causal"):
        lines.append(f"scores = np.where(np.tri({length}) > 0, scores, -np.inf)")
    return [*lines, "weights = np.exp(scores - scores.max(axis=-1, keepdims=True))",
            "weights = weights / weights.sum(axis=-1, keepdims=True)",
            "exact = (weights @ v).swapaxes(1, 2).reshape(*y.shape[:2], -1) @ numbers(w_o)"]  # fmt: skip
