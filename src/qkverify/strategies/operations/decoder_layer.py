"""The calls of decoder layer: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from qkverify.reference.encoder_decoder import decoder_layer
from qkverify.strategies.layer_weights import LAYER, exact_of, weights_of
from qkverify.strategies.operation_spec import LENGTHS, Given, OperationSpec, Source


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    lengths = {"memory_lengths": new.integers(1, s.K + 1, s.B, dtype=np.int32)} if s.padded else {}
    width = s.H * s.D
    given = {"x": new(s.B, s.L, width), "memory": new(s.B, s.K, width), "weights": weights_of(s, new, 3)}
    return given, {"heads": s.H, "norm_first": s.norm_first, "eps": s.eps, **lengths}


SPEC = OperationSpec({**LAYER, "K": LENGTHS}, _drawn, exact_of(decoder_layer))
