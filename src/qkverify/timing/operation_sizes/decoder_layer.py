"""The sizes at which decoder layer is timed."""

from __future__ import annotations

from qkverify.timing.model_sizes import LAYER
from qkverify.timing.operation_case import at, short_and_long

CASES = short_and_long("decoder_layer", *at((64, 256), LAYER, "LK"))
