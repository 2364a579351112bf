"""The mistakes of multi-head attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qkverify.diagnosis.operations.kind import Example, Operation, normal
from qkverify.reference.attention import attention, stored
from qkverify.reference.multi_head import merge_heads, multi_head_attention, split_heads
from qkverify.runs import Run


def _multi_head_examples(run: Run) -> list[Example]:
    sizes = [(2, 3, 5, 2), (3, 2, 4, 3), (1, 2, 7, 5), (2, 4, 3, 3), (4, 2, 1, 2), (2, 2, 2, 2)]
    found = []
    for i, (batch, heads, length, size) in enumerate(sizes):
        width = heads * size
        weights = [normal(run, 10 * i + j, width, width, times=width**-0.5) for j in range(4)]
        x = normal(run, 10 * i + 9, batch, length, width)
        found += [Example((x, *weights), {"heads": heads, "causal": c}, x.shape) for c in (False, True)]
    return [e for e in found if run.offers_parameter("causal") or not e.options["causal"]]


def _multi_head(split: Callable[[Any, int], Any] = split_heads, merge: Callable[[Any], Any] = merge_heads,
                between: Callable[[Any], Any] = lambda x: x, **changes: Any) -> Callable[..., Any]:  # fmt: skip
    """Multi-head attention with one step changed."""

    def compute(
        base: Any, x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, *, heads: int, causal: bool
    ) -> Any:
        query, key, value = (split(stored(x @ w), heads) for w in (w_q, w_k, w_v))
        options = {"causal": causal, **{n: of(x) if callable(of) else of for n, of in changes.items()}}
        return stored(merge(between(attention(query, key, value, **options))) @ w_o)

    return compute


def _as_it_lies(x: Any, heads: int) -> Any:
    return x.reshape(x.shape[0], heads, x.shape[1], x.shape[2] // heads)


def _exchange_batch_and_heads(x: Any) -> Any:
    batch, heads, *rest = x.shape
    return x.reshape(heads, batch, *rest).swapaxes(0, 1)


MULTI_HEAD = Operation(
    _multi_head_examples, lambda base, *a, **o: multi_head_attention(*a, **o), (
        ("multi-head attention whose heads are merged without a transpose: (B,H,L,D) is read as (B,L,H D) as it lies",
         _multi_head(merge=lambda x: x.reshape(x.shape[0], x.shape[2], -1))),
        ("multi-head attention whose heads are split without a transpose: (B,L,H D) is read as (B,H,L,D) as it lies",
         _multi_head(_as_it_lies)),
        ("multi-head attention that takes batch entries and heads for each other before it merges them",
         _multi_head(between=_exchange_batch_and_heads)),
        ("multi-head attention without causality", _multi_head(causal=False)),
        ("multi-head attention with the scale of the model's width instead of a head's",
         _multi_head(scale=lambda x: x.shape[-1] ** -0.5)),
        ("multi-head attention without a scale", _multi_head(scale=1.0)),
    ), (("with causality", lambda e: e.options["causal"]), ("with one batch entry", lambda e: e.shape[0] == 1)))  # fmt: skip
