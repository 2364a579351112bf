"""The calls of cross entropy: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

from qkverify.runs import exact_losses
from qkverify.strategies.operation_spec import LENGTHS, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    return {"scores": new(s.L, s.K), "targets": new.integers(0, s.K, s.L)}, {"smoothing": s.smoothing}


SPEC = OperationSpec(
    {"L": LENGTHS, "K": (2, 3, 5, 17), "smoothing": (0.0, 0.1, 1.0)},
    _drawn,
    lambda run, given, options: (exact_losses.cross_entropy(run, **given, **options),),
)
