"""The calls of packed attention: sizes, arguments, and what is exact."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from qkverify.rounding import Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_spec import LENGTHS, Given, OperationSpec, Source
from qkverify.strategies.served_sequences import SERVING, attended, joined


def _drawn(s: SimpleNamespace, new: Source) -> tuple[Given, Given]:
    """As many rows in every turn, cut elsewhere."""
    rows, keys = s.B * s.L, s.B * s.K
    cuts = [np.sort(new.integers(0, n + 1, s.B - 1)) for n in (rows, keys)]
    starts = [np.array([0, *cut, n], np.int32) for cut, n in zip(cuts, (rows, keys), strict=True)]
    arrays = {"query": new(rows, s.G * s.H, s.D), "key": new(keys, s.G, s.D), "value": new(keys, s.G, s.E)}
    given = {**arrays, "query_starts": starts[0], "key_starts": starts[1]}
    return given, {"causal": s.causal, "scale": s.scale}


def _exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
    q, k, v = (given[name].swapaxes(0, 1) for name in ("query", "key", "value"))
    bounds = zip(pairwise(given["query_starts"]), pairwise(given["key_starts"]), strict=True)
    rows = [(q[:, a:b], k[:, c:d], v[:, c:d]) for (a, b), (c, d) in bounds]
    outputs = attended(run, options, *rows)
    return joined([x.swapaxes(0, 1) for x in outputs], np.concatenate)


SPEC = OperationSpec({**SERVING, "K": LENGTHS, "causal": (False, True)}, _drawn, _exact)
