"""The calls of paged attention: sizes, arguments, and what is exact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from qkverify.reference.caches import gathered
from qkverify.rounding import Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_spec import Given, OperationSpec, Source
from qkverify.strategies.served_sequences import SERVING, last_tokens


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """Any page for any place: sequences may share one."""
    pools = {"key_pages": new(s.B + 2, s.P, s.G, s.D), "value_pages": new(s.B + 2, s.P, s.G, s.E)}
    width = -(-(s.L + 4) // s.P)
    table = new.integers(0, s.B + 2, s.B, width, dtype=np.int32)
    lengths = new.integers(s.L, width * s.P + 1, s.B, dtype=np.int32)
    query = new(s.B, s.G * s.H, s.L, s.D)
    return {"query": query, **pools, "page_table": table, "lengths": lengths}, {"scale": s.scale}


def _exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    where = given["page_table"], given["lengths"]
    keys, values = (gathered(given[x], *where) for x in ("key_pages", "value_pages"))
    return last_tokens(run, given["query"], keys, values, options)


SPEC = OperationSpec({**SERVING, "P": (1, 2, 4)}, _drawn, _exact)
