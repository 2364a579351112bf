"""The mistakes of multi-head attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import (
    Example,
    Mistakes,
    OperationKind,
    normal,
    with_option,
)
from qkverify.reference.attention import attention, stored
from qkverify.reference.multi_head import merge_heads, multi_head_attention, split_heads
from qkverify.reference.scores import scores
from qkverify.reference.softmax import softmax
from qkverify.runs.run import Run


def _examples(run: Run) -> list[Example]:
    sizes = [(2, 3, 5, 2), (3, 2, 4, 3), (1, 2, 7, 5), (2, 4, 3, 3), (4, 2, 1, 2), (2, 2, 2, 2)]
    told, examples = {"causal_alignment": "bottom-right"}, []
    clamped = run.implementation.clamped
    for i, (batch, *rest) in enumerate(sizes):
        heads, length, size = (clamped(letter, n) for letter, n in zip("HLD", rest, strict=True))
        width = heads * size
        weights = [normal(run, 10 * i + j, width, width, times=width**-0.5) for j in range(4)]
        x = normal(run, 10 * i + 9, batch, length, width)
        examples += [
            Example((x, *weights), {"heads": heads, "causal": c}, x.shape, told) for c in (False, True)
        ]
    return [e for e in examples if run.offers_parameter("causal") or not e.options["causal"]]


def varied(split: Callable[[Any, int], Any] = split_heads, merge: Callable[[Any], Any] = merge_heads,
           between: Callable[[Any], Any] = lambda x: x, weights: Callable[..., Any] = lambda *w: w,
           projected: bool = True, attend: Callable[..., Any] = attention, **changes: Any) -> Callable[..., Any]:  # fmt: skip
    """Multi-head attention with one step changed. `changes` are options of attention, or functions of x that give them."""

    def compute(x: Any, *given: Any, heads: int, context: Any = None, **options: Any) -> Any:
        w_q, w_k, w_v, w_o = weights(*given)
        source = x if context is None else context
        query, key, value = (split(stored(y @ w), heads) for y, w in ((x, w_q), (source, w_k), (source, w_v)))
        others = {n: of(x) if callable(of) else of for n, of in changes.items()}
        merged = merge(between(attend(query, key, value, **{**options, **others})))
        return stored(merged @ w_o) if projected else stored(merged)

    return compute


def _as_it_lies(x: Any, heads: int) -> Any:
    return x.reshape(x.shape[0], heads, x.shape[1], x.shape[2] // heads)


def _heads_inside(x: Any, heads: int) -> Any:
    """Columns of a head that are `heads` apart, and not side by side."""
    return x.reshape(*x.shape[:2], x.shape[2] // heads, heads).transpose(0, 3, 1, 2)


def _exchange_batch_and_heads(x: Any) -> Any:
    batch, heads, *rest = x.shape
    return x.reshape(heads, batch, *rest).swapaxes(0, 1)


def _normalised_over(axis: int) -> Callable[..., Any]:
    """Attention whose softmax is taken along another axis of the scores (B,H,Q,K); 0 / 0 where all of it is hidden."""

    def attend(query: Any, key: Any, value: Any, **options: Any) -> Any:
        logits = scores(query, key, **options)
        hidden = ~np.isfinite(np.max(logits, axis=axis, keepdims=True, initial=-np.inf))
        return stored(np.where(hidden, np.nan, softmax(logits, axis=axis)) @ value)

    return attend


def _masked_after_the_softmax(
    query: Any, key: Any, value: Any, *, causal: bool = False, **options: Any
) -> Any:
    weights = softmax(scores(query, key, **options))
    return stored((weights * np.tri(weights.shape[-1]) if causal else weights) @ value)


def over_the_batch(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Tokens attend to those of the same place in the other entries."""
    return lambda x, *rest, **o: compute(x.swapaxes(0, 1), *rest, **o).swapaxes(0, 1)


STEPS: Mistakes = (
    ("whose heads are merged without a transpose: (B,H,L,D) is read as (B,L,H D) as it lies",
     varied(merge=lambda x: x.reshape(x.shape[0], x.shape[2], -1))),
    ("whose heads are split without a transpose: (B,L,H D) is read as (B,H,L,D) as it lies", varied(_as_it_lies)),
    ("whose heads take every H-th column instead of columns side by side", varied(_heads_inside)),
    ("that takes batch entries and heads for each other before it merges them", varied(between=_exchange_batch_and_heads)),
    ("whose heads are merged in reverse", varied(between=lambda x: np.flip(x, 1))),
    ("with one head instead of several", lambda *a, heads, **o: multi_head_attention(*a, heads=1, **o)),
    ("with the scale of the model's width instead of a head's", varied(scale=lambda x: x.shape[-1] ** -0.5)),
    ("without a scale", varied(scale=1.0)),
    ("without the projection of its output", varied(projected=False)),
    ("whose softmax is taken over the queries instead of the keys", varied(attend=_normalised_over(-2))),
    ("whose softmax is taken over the heads instead of the keys", varied(attend=_normalised_over(1))),
    ("whose softmax is taken over the batch instead of the keys", varied(attend=_normalised_over(0))),
    ("with the weights of queries and keys exchanged", varied(weights=lambda q, k, v, o: (k, q, v, o))),
    ("with the weights of keys and values exchanged", varied(weights=lambda q, k, v, o: (q, v, k, o))),
    ("with the weights of the keys for the values too", varied(weights=lambda q, k, v, o: (q, k, k, o))),
    ("with the weights of the queries for the keys too", varied(weights=lambda q, k, v, o: (q, q, v, o))),
    ("with all four weight matrices transposed", varied(weights=lambda *w: tuple(x.swapaxes(0, 1) for x in w))),
    ("with the weights of the output transposed", varied(weights=lambda q, k, v, o: (q, k, v, o.swapaxes(0, 1)))),
)  # fmt: skip

KIND = OperationKind(
    _examples, multi_head_attention, (
        *((f"multi-head attention {text}", compute) for text, compute in STEPS),
        ("multi-head attention without causality", varied(causal=False)),
        ("multi-head attention with causality although none was asked for", varied(causal=True)),
        ("multi-head attention whose tokens do not see themselves",
         varied(causal=False, mask=lambda x: np.tri(x.shape[1], k=-1, dtype=bool))),
        *((f"multi-head attention whose tokens do not see themselves: the first one sees none, and gives {word}",
           varied(causal=False, mask=lambda x: np.tri(x.shape[1], k=-1, dtype=bool), empty_rows=policy))
          for policy, word in (("nan", "NaN"), ("uniform", "the mean of all values"))),
        ("multi-head attention whose tokens see one token of the future",
         varied(causal=False, mask=lambda x: np.tri(x.shape[1], k=1, dtype=bool))),
        *((f"multi-head attention whose tokens see the future, and neither themselves nor the past{word}",
           varied(causal=False, mask=lambda x: ~np.tri(x.shape[1], dtype=bool), empty_rows=policy))
          for policy, word in (("uniform", ""), ("nan", ": the last one sees none, and gives NaN"))),
        ("multi-head attention with causality applied after the softmax", varied(attend=_masked_after_the_softmax)),
        ("multi-head attention whose tokens see the future and not the past",
         varied(causal=False, mask=lambda x: np.tri(x.shape[1], dtype=bool).T)),
        ("multi-head attention over the batch: tokens attend to the same place of the other entries",
         over_the_batch(multi_head_attention)),
        ("multi-head attention of the first batch entry, for all",
         lambda x, *w, **o: multi_head_attention(np.take(x, [0] * x.shape[0], 0), *w, **o)),
    ), (("with causality", with_option("causal")), ("with one batch entry", lambda e: e.shape[0] == 1),
        ("with one token", lambda e: e.shape[1] == 1)))  # fmt: skip
