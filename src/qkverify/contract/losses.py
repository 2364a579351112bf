"""The names by which libraries have a cross entropy, and one that returns a single number for all tokens as one of each token."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qkverify.contract import frameworks

SCORES = ("input", "inputs", "logits", "scores", "pred", "preds", "x", "output", "outputs")
TARGETS = ("target", "targets", "label", "labels", "y")
OPTIONS = ("label_smoothing", "smoothing", "ignore_index")  # that no other loss has
SPELLINGS: Mapping[str, str] = {"label_smoothing": "smoothing"}
NEVER = -100  # a target that is ignored and never drawn: torch's own default


def is_cross_entropy(name: str, parameters: Sequence[str]) -> bool:
    """Whether a function of this name and these parameters is a cross entropy of scores and targets."""
    low = [parameter.lower() for parameter in parameters]
    if len(low) < 2 or low[0] not in SCORES or low[1] not in TARGETS:
        return False
    return any(word in name.lower() for word in ("cross_entropy", "crossentropy", "xent")) or bool(
        {*OPTIONS} & {*low}
    )


def constants(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Parameter -> what every call passes: a loss for each token, none of them ignored, and no smoothing unless asked for."""
    passed: dict[str, Any] = {"reduction": "none", "ignore_index": NEVER}
    smooth = [name for name in ("label_smoothing", "smoothing") if name in parameters]
    passed |= {name: 0.0 for name in smooth if parameters[name].default not in (None, 0)}
    return {name: value for name, value in passed.items() if name in parameters}


class OfEachToken:
    """A loss that is one number for all tokens, called with one token at a time; `adapted` is the function itself."""

    def __init__(self, function: Callable[..., Any], arrays: str) -> None:
        self.adapted, self.arrays = function, arrays
        functools.update_wrapper(self, function)

    def __call__(self, scores: Any, targets: Any, **keywords: Any) -> Any:
        rows = range(scores.shape[0])
        losses = [
            self.adapted(scores[at : at + 1], targets[at : at + 1], **keywords).reshape(1) for at in rows
        ]
        return frameworks.get(self.arrays).concatenated(losses)
