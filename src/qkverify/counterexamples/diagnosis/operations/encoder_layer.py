"""The mistakes of an encoder layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import OperationKind, with_option
from qkverify.counterexamples.diagnosis.operations.layer_steps import varied
from qkverify.counterexamples.diagnosis.operations.layers import SHARED, examples
from qkverify.counterexamples.diagnosis.operations.multi_head_attention import over_the_batch
from qkverify.reference.encoder_decoder import encoder_layer


def _only_padding(empty_rows: str) -> Any:
    """Tokens attend to the padding and to nothing else."""

    def padding_shown(options: dict[str, Any], length: int) -> dict[str, Any]:
        ends = options["key_lengths"]
        if ends is None:
            return options
        hidden = np.arange(length) >= np.reshape(ends, (-1, 1, 1, 1))
        return {**options, "key_lengths": None, "mask": hidden, "empty_rows": empty_rows}

    return padding_shown


KIND = OperationKind(lambda run: examples(run, "key_lengths", decoder=False), encoder_layer, (
    *((f"an encoder layer {text}", compute) for text, compute in SHARED),
    ("an encoder layer that is causal: tokens see only those before them",
     varied(own=lambda options, length: {**options, "causal": True})),
    ("an encoder layer whose attention runs over the batch: tokens attend to the same place of the other sequences",
     over_the_batch(varied())),
    ("an encoder layer that attends to the padding", varied(own=lambda options, length: {**options, "key_lengths": None})),
    ("an encoder layer that attends to the padding only", varied(own=_only_padding("zero"))),
    ("an encoder layer that attends to the padding only", varied(own=_only_padding("nan"))),
    ("an encoder layer whose tokens do not attend to themselves",
     varied(own=lambda options, length: {**options, "mask": ~np.eye(length, dtype=bool)})),
), (("with padding", with_option("key_lengths")), ("with the norm first", with_option("norm_first")),
    ("with one batch entry", lambda e: e.shape[0] == 1), ("with one token", lambda e: e.shape[1] == 1)))  # fmt: skip
