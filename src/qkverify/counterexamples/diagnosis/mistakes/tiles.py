"""Tiles of keys or queries that are left out, or put together wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.mistakes.variants import (
    TILES,
    Arguments,
    Array,
    Compute,
    Mistake,
    columns,
    logits_of,
    output_of,
    rows,
    seen,
    sees,
)
from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import stored
from qkverify.reference.groups import per_query_head
from qkverify.reference.softmax import log_sum_exp, softmax
from qkverify.rounding import Bounded


def _whole_tiles(tile: int) -> Callable[[Problem], Array]:
    return lambda p: seen(p) & (columns(p) < p.sizes["K"] // tile * tile)


def _rows_unwritten(tile: int) -> Compute:
    def compute(a: Arguments, p: Problem) -> Any:
        written = rows(p) < p.sizes["Q"] // tile * tile
        return np.where(written, output_of(a), 0.0)

    return compute


def _online(tile: int, numerator: Callable[..., Any], denominator: Callable[..., Any]) -> Compute:
    """Tile by tile, where sums over earlier tiles keep a wrong shift: a function of (maximum so far, final maximum)."""

    def compute(a: Arguments, p: Problem) -> Any:
        logits = logits_of(a)
        peaks, last = np.where(np.isneginf(logits.value), 0.0, logits.errors), np.arange(logits.shape[-1])
        ends = np.minimum(last // tile * tile + tile - 1, last[-1])
        so_far: Any = Bounded(np.maximum.accumulate(logits.value, axis=-1)[..., ends],
                         np.maximum.accumulate(peaks, axis=-1)[..., ends], logits.precision)  # fmt: skip
        so_far = np.where(np.isfinite(so_far.value), so_far, 0.0)
        final = so_far[..., -1:]
        above = np.exp(logits - numerator(so_far, final))
        total = np.sum(np.exp(logits - denominator(so_far, final)), axis=-1, keepdims=True)
        return stored((above @ per_query_head(a["value"], p.sizes["H"])) / np.where(total > 0, total, 1.0))

    return compute


def _halves(a: Arguments, p: Problem) -> Any:
    """Two halves of the keys, each right, merged by 2^lse instead of e^lse."""
    logits, cut = logits_of(a), p.sizes["K"] // 2
    value = per_query_head(a["value"], p.sizes["H"])
    parts = [(logits[..., :cut], value[:, :, :cut]), (logits[..., cut:], value[:, :, cut:])]
    lse = [log_sum_exp(x)[..., None] * math.log(2) for x, _ in parts]
    top = np.maximum(lse[0].value, lse[1].value)
    weight = [np.exp(x - np.where(np.isfinite(top), top, 0.0)) for x in lse]
    total = weight[0] + weight[1]
    merged = sum(w * (softmax(x) @ v) for w, (x, v) in zip(weight, parts, strict=True))
    return stored(merged / np.where(total > 0, total, 1.0))


TILED: tuple[Mistake, ...] = (
    *(Mistake(f"attention without the last keys, those past the last whole tile of {t}",
              sees(_whole_tiles(t))) for t in TILES),
    *(Mistake(f"attention whose last queries, those past the last whole tile of {t}, are left zero",
              output=_rows_unwritten(t)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys whose sum of weights is not rescaled when the maximum rises",
              output=_online(t, lambda now, end: end, lambda now, end: now)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys whose output is not rescaled when the maximum rises",
              output=_online(t, lambda now, end: now, lambda now, end: end)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys where nothing is rescaled when the maximum rises",
              output=_online(t, lambda now, end: now, lambda now, end: now)) for t in TILES),
    *(Mistake(f"attention over tiles of {t} keys, rescaled by exp(new - old) instead of exp(old - new) when the maximum rises",
              output=_online(t, lambda now, end: now + now - end, lambda now, end: now + now - end)) for t in TILES),
    Mistake("attention over two halves of the keys that are merged as if their log-sum-exp were to base 2", output=_halves),
)  # fmt: skip
