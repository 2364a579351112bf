"""The textbook form of embedding, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """Scaled words plus the encoding of their positions."""
    size, length = call.arguments[1].shape[1], call.arguments[0].shape[1]
    first = "numbers(padding)[:, None]" if "padding" in call.options else "np.zeros((1, 1))"
    joined = "np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(*angle.shape[:-1], -1)"
    if run.meant(layout=call.options.get("layout"))["layout"] != "interleaved":
        joined = "np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)"
    return [DEFINITION, f"at = np.maximum(np.arange({length}) - {first}, 0)  # the position of each token",
            f"angle = at[..., None] / 10000.0 ** (np.arange(0, {size}, 2) / {size})",
            f"exact = numbers(table)[numbers(tokens).astype(int)] * {size} ** 0.5 + {joined}"]  # fmt: skip
