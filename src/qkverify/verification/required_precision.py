"""The precision that a run requires: a function that was judged by a looser model, because the required one does not hold, fails.

A declared precision is taken at its word; what is meant is a model that was granted to who declared none.
"""

from __future__ import annotations

from collections.abc import Sequence

from qkverify.errors import UsageError
from qkverify.results import Verdict
from qkverify.units import number_of

LAW = "required_precision_is_kept"
MODELS = ("fused", "fused-fast-exp", "eager")  # from the tightest to the loosest


def checked(model: str) -> str:
    """The model, or "" if none is required. Raises UsageError naming the models."""
    if model and model not in MODELS:
        raise UsageError.unknown("precision", model, MODELS)
    return model


def verdicts(of_cell: Sequence[Verdict], required: str) -> list[Verdict]:
    """A broken law, if the verdicts of a cell were reached under models looser than the required one."""
    if not required:
        return []
    granted = {each.sentence: each.model for verdict in of_cell for each in verdict.looser}
    looser = [sentence for sentence, model in granted.items() if MODELS.index(model) > MODELS.index(required)]
    if not looser:
        return []
    first = of_cell[0]
    return [Verdict(law=LAW, family="precision", exact=True, implementation=first.implementation, device=first.device,
                    dtype=first.dtype, outcome="failed", reason=_reason(looser, required),
                    sentence=f"Results and gradients round as {required} code does: --require-precision {required}.",
                    looser=first.looser)]  # fmt: skip


def _reason(sentences: Sequence[str], required: str) -> str:
    count = number_of(len(sentences), "looser model")
    return f"{required} is required, and {count} had to be granted: {'; '.join(sentences)}"
