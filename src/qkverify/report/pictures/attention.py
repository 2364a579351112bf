"""What each head of a trained model reads in the sentence of "The Illustrated Transformer", by our multi-head attention."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qkverify.problem import pretrained
from qkverify.problem.texts import ANIMAL
from qkverify.report.pictures.grid import rounded
from qkverify.results import Picture

SOURCE = f'"The Illustrated Transformer", part "Self-Attention at a High Level"; weights of {pretrained.NAME}'
MADE_BY = ["numpy_multi_head", "numpy_textbook"]
ASKED, ANSWER = "it", "animal"


def measure() -> Iterator[Picture]:
    """What stands out of all heads, then a picture for each head of each layer; without the extra `models` what is missing."""
    reason = pretrained.lacking()
    if reason is not None:
        yield Picture(name="attention", group="attention", kind="weights", title=ANIMAL, reason=reason)
        return
    trace = pretrained.trace(ANIMAL)
    yield Picture(name="attention", group="attention", kind="weights", title=ANIMAL, finding=most(trace), source=SOURCE,
                  made_by=MADE_BY)  # fmt: skip
    for layer, weights in enumerate(trace.attention, start=1):
        for head, matrix in enumerate(weights[0], start=1):
            yield Picture(
                name=f"attention-{layer}-{head}", group="attention", kind="weights", title=f"layer {layer}, head {head}",
                finding=sentence(trace.tokens, matrix), source=SOURCE, rows=trace.tokens, columns=trace.tokens,
                row_axis="reads", column_axis="is read", values=rounded(matrix), made_by=MADE_BY,
            )  # fmt: skip


def most(trace: pretrained.Trace) -> str:
    """Which of all heads connects the two words of the article."""
    asking, answer = trace.tokens.index(ASKED), trace.tokens.index(ANSWER)
    every = np.array([weights[0, :, asking, answer] for weights in trace.attention])  # (layers, H)
    layer, head = np.unravel_index(int(np.argmax(every)), every.shape)
    return (
        f"Of {every.size} heads, head {head + 1} of layer {layer + 1} reads “{ANSWER}” at “{ASKED}” most, with a weight of "
        f"{every[layer, head]:.2f}; {np.sum(every < 1 / len(trace.tokens))} give it less than equal weights would."
    )


def sentence(tokens: list[str], matrix: np.ndarray) -> str:
    """What "it" reads, in words."""
    row = matrix[tokens.index(ASKED)]
    most = int(np.argmax(row))
    words = f"“{ASKED}” reads “{tokens[most]}” most, {row[most]:.2f}"
    return words if tokens[most] == ANSWER else f"{words}; “{ANSWER}” {row[tokens.index(ANSWER)]:.2f}"
