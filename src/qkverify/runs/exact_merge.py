"""What is exact of merged attention, with the bound of the way in which a function computes it.

The shares are a softmax of the two log-sum-exps; its bound holds for exp(lse - the larger) and for exp(lse - the merged one), as
that is stored. As o_b + sigmoid(lse_a - lse_b) (o_a - o_b), the larger output rounds the smaller one's part away: the same
numbers with another bound, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qkverify.reference.merging import merged_attention, merged_attention_vjp
from qkverify.reference.softmax import log_sum_exp, softmax
from qkverify.rounding import LN_2, Bounded
from qkverify.runs.run import Run

Array = np.ndarray
PARTS = ("output", "lse")


def computed(
    o_a: Bounded,
    lse_a: Bounded,
    o_b: Bounded,
    lse_b: Bounded,
    *,
    base: str = "e",
    weights: str = "by shares",
) -> Mapping[str, Bounded]:
    """The output (..., E) and its log-sum-exp (...), of arrays with bounds."""
    sides: Any = _natural(lse_a, base), _natural(lse_b, base)
    both: Any = merged_attention(o_a, sides[0], o_b, sides[1])
    if weights == "by the difference":
        both = [
            _wider(*pair) for pair in zip(both, _by_the_difference(o_a, sides[0], o_b, sides[1]), strict=True)
        ]
    output, lse = both
    return {"output": output, "lse": lse if base == "e" else lse * (1 / LN_2)}


def computed_gradients(
    o_a: Bounded, lse_a: Bounded, o_b: Bounded, lse_b: Bounded, upstream: Bounded, lse_upstream: Bounded, *,
    base: str = "e", weights: str = "by shares",
) -> Mapping[str, Bounded]:  # fmt: skip
    """Those of the four arguments."""
    factor: Any = lse_upstream if base == "e" else lse_upstream * (1 / LN_2)
    given: Any = (o_a, _natural(lse_a, base), o_b, _natural(lse_b, base), upstream, factor)
    exact: Any = merged_attention_vjp(*given)
    if base == "2":
        exact = {name: x if name.startswith("o") else x * LN_2 for name, x in exact.items()}
    return exact  # type: ignore[no-any-return]


def merged(run: Run, *arrays: Array, **choices: Any) -> Mapping[str, Bounded]:
    """The exact parts of one call."""
    given: list[Any] = [run.bounded(x) for x in arrays]
    return computed(*given, **choices)


def gradients(
    run: Run, upstream: tuple[Array, Array], *arrays: Array, **choices: Any
) -> Mapping[str, Bounded]:
    """The exact gradients of one call."""
    return computed_gradients(
        *(run.bounded(x, run.gradient_precision) for x in (*arrays, *upstream)), **choices
    )


def _natural(lse: Bounded, base: str) -> Any:
    return lse if base == "e" else lse * LN_2


def _by_the_difference(o_a: Any, lse_a: Any, o_b: Any, lse_b: Any) -> tuple[Any, Any]:
    seen = np.isfinite(lse_a.value) & np.isfinite(lse_b.value)
    a, b = np.where(seen, lse_a, 0.0), np.where(seen, lse_b, 0.0)
    difference: Any = np.stack([a - b, 0.0 * (a - b)], axis=-1)
    share: Any = softmax(difference)
    output = o_b + share[..., :1] * (o_a - o_b)
    other = o_a + share[..., 1:] * (o_b - o_a)
    ends: Any = log_sum_exp(difference), log_sum_exp(-difference)
    return _wider(np.positive(output), np.positive(other)), _wider(b + ends[0], a + ends[1])


def _wider(first: Any, second: Any) -> Any:
    """The first, with a bound that holds for both ways of computing it."""
    errors = np.where(np.isfinite(first.value), np.maximum(first.errors, second.errors), first.errors)
    return Bounded(first.value, errors, first.precision, first.unit)
