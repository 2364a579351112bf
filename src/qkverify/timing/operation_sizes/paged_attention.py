"""The sizes at which paged attention is timed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from qkverify.strategies.operation_spec import Given, Source
from qkverify.timing.model_sizes import GROUPED
from qkverify.timing.operation_case import at, short_and_long


def _one_more_token(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """Decoding: each of B sequences has L tokens in pages of P, in any order."""
    width = -(-s.L // s.P)
    pools = {"key_pages": new(s.B * width, s.P, s.G, s.D), "value_pages": new(s.B * width, s.P, s.G, s.E)}
    table = np.argsort(new(s.B * width).astype(np.float64)).reshape(s.B, width).astype(np.int32)
    query = new(s.B, s.G * s.H, 1, s.D)
    return {"query": query, **pools, "page_table": table, "lengths": np.full(s.B, s.L, np.int32)}, {
        "scale": s.scale
    }


CASES = short_and_long("paged_attention", *at((512, 2048), {**GROUPED, "B": 1, "P": 16}), _one_more_token)
