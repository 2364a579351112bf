"""The mistakes of a decoder layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import OperationKind, with_option
from qkverify.counterexamples.diagnosis.operations.layer_steps import varied
from qkverify.counterexamples.diagnosis.operations.layers import SHARED, examples
from qkverify.reference.encoder_decoder import decoder_layer


def _from_targets(options: dict[str, Any], length: int) -> dict[str, Any]:
    """Of the memory's padding nothing is left where the memory is not read."""
    return {**options, "key_lengths": None}


KIND = OperationKind(lambda run: examples(run, "memory_lengths", decoder=True), decoder_layer, (
    *((f"a decoder layer {text}", compute) for text, compute in SHARED),
    ("a decoder layer whose tokens see the future", varied(own=lambda options, length: {**options, "causal": False})),
    ("a decoder layer whose tokens do not see themselves",
     varied(own=lambda options, length: {**options, "causal": False, "mask": np.tri(length, k=-1, dtype=bool)})),
    ("a decoder layer whose tokens see the future and not the past",
     varied(own=lambda options, length: {**options, "causal": False, "mask": np.tri(length, dtype=bool).T})),
    ("a decoder layer whose attention to the memory is causal, as that to the targets is",
     varied(cross=lambda options, length: {**options, "causal": True, "causal_alignment": "top-left"})),
    ("a decoder layer whose attention to the memory is causal, aligned at its end",
     varied(cross=lambda options, length: {**options, "causal": True})),
    ("a decoder layer that attends to the padding of the memory", varied(cross=_from_targets)),
    ("a decoder layer whose second attention takes keys and values from the targets instead of the memory",
     varied(source=lambda memory, x: x, cross=_from_targets)),
    ("a decoder layer that attends to the memory with the weights of its self-attention", varied(cross_prefix="")),
    ("a decoder layer whose self-attention has the weights of the attention to the memory", varied(of="cross_")),
    ("a decoder layer that attends to the memory before it attends to the targets",
     varied(order=lambda sublayers: [sublayers[1], sublayers[0], sublayers[2]])),
    ("a decoder layer without attention to the memory", varied(order=lambda sublayers: [sublayers[0], sublayers[2]])),
    ("a decoder layer without self-attention", varied(order=lambda sublayers: sublayers[1:])),
    ("a decoder layer that reads the memory of the first batch entry for all",
     varied(source=lambda memory, x: np.take(memory, [0] * memory.shape[0], 0))),
), (("with padding", with_option("memory_lengths")), ("with the norm first", with_option("norm_first")),
    ("with one batch entry", lambda e: e.shape[0] == 1), ("with one token", lambda e: e.shape[1] == 1)))  # fmt: skip
