"""The sizes at which cached attention is timed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from qkverify.strategies.operation_spec import Given, Source
from qkverify.timing.model_sizes import GROUPED
from qkverify.timing.operation_case import at, short_and_long


def _one_more_token(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """Decoding: each of B sequences appends one token to a cache that holds L."""
    arrays = {
        "query": new(s.B, s.G * s.H, 1, s.D),
        "key": new(s.B, s.G, 1, s.D),
        "value": new(s.B, s.G, 1, s.E),
    }
    caches = {"key_cache": new(s.B, s.G, s.L + 1, s.D), "value_cache": new(s.B, s.G, s.L + 1, s.E)}
    return {**arrays, **caches, "lengths": np.full(s.B, s.L, np.int32)}, {"scale": s.scale}


CASES = short_and_long("cached_attention", *at((512, 2048), {**GROUPED, "B": 1}), _one_more_token)
