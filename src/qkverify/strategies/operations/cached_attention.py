"""The calls of cached attention: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from qkverify.reference.caches import appended
from qkverify.rounding import Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_spec import Given, OperationSpec, Source
from qkverify.strategies.served_sequences import SERVING, last_tokens


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """The lengths go on from turn to turn, as they do when a sequence is decoded."""
    arrays = {
        "query": new(s.B, s.G * s.H, s.L, s.D),
        "key": new(s.B, s.G, s.L, s.D),
        "value": new(s.B, s.G, s.L, s.E),
    }
    room = 5 + 3 * s.L
    caches = {"key_cache": new(s.B, s.G, room, s.D), "value_cache": new(s.B, s.G, room, s.E)}
    lengths = new.steady(0, 5, s.B) + np.int32(new.turn * s.L)
    return {**arrays, **caches, "lengths": lengths}, {"scale": s.scale}


def _exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    keys, values = (appended(given[f"{x}_cache"], given[x], given["lengths"]) for x in ("key", "value"))
    return last_tokens(run, given["query"], keys, values, options)


SPEC = OperationSpec(SERVING, _drawn, _exact, written=("key_cache", "value_cache"))
