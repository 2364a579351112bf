"""ALiBi: -slope * |distance| is added to the scores."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant

OFFERS = ("alibi_slopes", "causal", "scale")


@mutant(
    "B096", step="slopes", offers=OFFERS, evidence="stated", threads="ml-explore/mlx#3071 ml-explore/mlx#343"
)
def one_slope_rule_for_every_number_of_heads(call: Call) -> np.ndarray:
    """Slopes are 2^(-8 i / H) whatever H is, and not the interleaved ones where H is no power of two."""
    slopes = 2.0 ** (-8 * np.arange(1, call.H + 1) / call.H)  # right: call.alibi_slopes
    return slopes.astype(call.dtype)[:, None, None]


@mutant("B097", step="slopes", offers=OFFERS, evidence="stated", threads="paiml/aprender#2143")
def slopes_are_counted_from_zero(call: Call) -> np.ndarray:
    """Each head takes the slope before its own, and the first takes 1: 2^(-8 h / H) with h from 0."""
    slopes = np.concatenate([[1], call.alibi_slopes[:-1]])[: call.H]  # right: call.alibi_slopes
    return slopes.astype(call.dtype)[:, None, None]


REMEMBERED: dict[tuple[int, ...], np.ndarray] = {}


@mutant("B146", step="slopes", offers=OFFERS, evidence="stated", threads="ml-explore/mlx#3071")
def remembered_by_an_incomplete_key(call: Call) -> np.ndarray:
    """The penalty is kept from one call to the next under the sizes alone, whatever the slopes were."""
    key = (call.H, call.Q, call.K)  # right: (call.H, call.Q, call.K, *call.alibi_slopes)
    return REMEMBERED.setdefault(key, textbook.slopes(call)).astype(call.dtype)


@mutant("A004", step="add_bias", offers=(*OFFERS, "bias"), evidence="inferred")
def distance_is_not_counted_past_a_tile(call: Call, scores: np.ndarray) -> np.ndarray:
    """The distance is a remainder: from 64 on the penalty begins again."""
    if call.alibi_slopes is not None:
        away = np.abs(call.rows - call.columns)
        scores = scores + textbook.slopes(call) * (away - away % 64).astype(
            call.dtype
        )  # right: nothing is given back
    return textbook.add_bias(call, scores)


@mutant("A005", operation="alibi_slopes", evidence="inferred")
def all_heads_but_the_first_64_share_a_slope(heads: int) -> np.ndarray:
    """A table of 64 slopes: further heads take the last one."""
    return np.array([slope(min(h, 63), heads) for h in range(heads)], np.float32)  # right: h


def slope(head: int, heads: int) -> float:
    """The slope of a head: powers of 2^(-8/n) for the largest power of two n, then every second of those for 2 n."""
    n = 2 ** int(np.log2(max(heads, 1)))
    return 2.0 ** (-8 * (head + 1) / n) if head < n else 2.0 ** (-4 * (2 * (head - n) + 1) / n)
