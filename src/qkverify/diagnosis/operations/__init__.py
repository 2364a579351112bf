"""The diagnosis of other operations than attention: their mistakes compared on examples of their own.

A mistake is named only where it is the sole one of its table that explains everything that was observed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qkverify.diagnosis.fitting import select, sentence
from qkverify.diagnosis.observing import fresh
from qkverify.diagnosis.operations import signs
from qkverify.diagnosis.operations.alibi_slopes import ALIBI_SLOPES
from qkverify.diagnosis.operations.cached import CACHED
from qkverify.diagnosis.operations.calling import ASPECTS, Caller
from qkverify.diagnosis.operations.cross_entropy import CROSS_ENTROPY
from qkverify.diagnosis.operations.decoder_layer import DECODER
from qkverify.diagnosis.operations.embedding import EMBEDDING
from qkverify.diagnosis.operations.encoder_layer import ENCODER
from qkverify.diagnosis.operations.feed_forward import FEED_FORWARD
from qkverify.diagnosis.operations.kind import Operation
from qkverify.diagnosis.operations.multi_head import MULTI_HEAD
from qkverify.diagnosis.operations.packed import PACKED
from qkverify.diagnosis.operations.paged import PAGED
from qkverify.diagnosis.operations.positional_encoding import POSITIONAL_ENCODING
from qkverify.diagnosis.operations.rotary import ROTARY
from qkverify.diagnosis.operations.rotary_pair import ROTARY_PAIR
from qkverify.diagnosis.operations.softmax import SOFTMAX
from qkverify.runs import Run

OTHERS: Mapping[str, Operation] = {
    "softmax": SOFTMAX, "positional_encoding": POSITIONAL_ENCODING, "rotary": ROTARY, "rotary_pair": ROTARY_PAIR,
    "alibi_slopes": ALIBI_SLOPES, "embedding": EMBEDDING, "multi_head_attention": MULTI_HEAD, "feed_forward": FEED_FORWARD,
    "encoder_layer": ENCODER, "decoder_layer": DECODER, "cross_entropy": CROSS_ENTROPY,
    "packed_attention": PACKED, "cached_attention": CACHED, "paged_attention": PAGED,
}  # fmt: skip


def other_operation(run: Run, until: float) -> str:
    """The diagnosis of another operation: its mistakes compared on examples of its own."""
    operation = OTHERS.get(run.implementation.operation)
    if operation is None:
        return ""
    caller = Caller(fresh(run), operation, until)
    with np.errstate(all="ignore"):
        for aspect, said in ASPECTS.items():
            seen = caller.observations(aspect)
            if not seen or seen[0].right:
                continue
            varying = signs.varies(caller, seen[0].subject, aspect)
            if varying:
                return varying
            text, where = select(
                caller.run, seen, caller.mistakes(aspect), operation.conditions, until, sole=True
            )
            if text:
                return sentence(where, said.format(text))
            return signs.written(caller) or signs.only_later(seen, aspect)
        return signs.layouts(caller) or signs.written(caller)
