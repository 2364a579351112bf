"""The calls of encoder layer: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from qkverify.reference.encoder_decoder import encoder_layer
from qkverify.strategies.layer_weights import LAYER, exact_of, weights_of
from qkverify.strategies.operation_spec import Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    lengths = {"key_lengths": new.integers(1, s.L + 1, s.B, dtype=np.int32)} if s.padded else {}
    given = {"x": new(s.B, s.L, s.H * s.D), "weights": weights_of(s, new, 2)}
    return given, {"heads": s.H, "norm_first": s.norm_first, "eps": s.eps, **lengths}


SPEC = OperationSpec(LAYER, _drawn, exact_of(encoder_layer))
