"""What packed, cached and paged attention share: attention of each sequence by itself, and their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.rounding import EXACT, Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_spec import ROWS, Array, Given

SERVING: Mapping[str, Sequence[Any]] = {
    **ROWS, "G": (1, 2), "H": (1, 2), "D": (1, 2, 4), "E": (1, 2, 3), "scale": (None, 0.5)}  # fmt: skip


def attended(run: Run, options: Given, *rows: tuple[Array, Array, Array]) -> list[Bounded]:
    """Attention of each sequence, given as query (H,Q,D), key (G,K,D) and value (G,K,E), as (H,Q,E)."""
    outputs = []
    for query, key, value in rows:
        given: Given = {"query": query[None], "key": key[None], "value": value[None], **options}
        run.problems.append(Problem(**given, causal_alignment=run.semantics["causal_alignment"]))
        outputs.append(run.bound(run.problems[-1])[0])
    return [Bounded(output.value[0], output.errors[0], EXACT) for output in outputs]


def joined(parts: Sequence[Bounded], join: Callable[[list[Array]], Array]) -> tuple[Bounded, ...]:
    return (Bounded(join([x.value for x in parts]), join([x.errors for x in parts]), EXACT),)


def last_tokens(
    run: Run, query: Array, keys: list[Array], values: list[Array], options: Given
) -> tuple[Bounded, ...]:
    """Attention of each entry's queries, its last tokens, to its own keys (1,G,n,D) and values (1,G,n,E)."""
    rows = ((q, k[0], v[0]) for q, k, v in zip(query, keys, values, strict=True))
    return joined(attended(run, {**options, "causal": True}, *rows), np.stack)
