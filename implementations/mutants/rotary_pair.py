"""Rotary encodings of query and key in one call. query (B, H, L, D), key (B, G, L, D), positions (B, L)."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.positions import angles, joined, pairs, rotary_pair

Array = np.ndarray
Pair = tuple[Array, Array]


@mutant(
    "B116",
    operation="rotary_pair",
    requires=("G == H",),
    evidence="stated",
    threads="hpcaitech/ColossalAI#6429",
)
def halves_of_query_and_key_are_swapped(
    query: Array, key: Array, positions: Array, *, layout: str = "interleaved"
) -> Pair:
    """The second half of the turned query is made of the key, and the first half of the turned key of the query."""
    angle = angles(positions, query.shape[-1])[:, None]
    cosine, sine = np.cos(angle), np.sin(angle)
    (q_0, q_1), (k_0, k_1) = pairs(query, layout), pairs(key, layout)
    first_q, second_k = q_0 * cosine - q_1 * sine, k_0 * sine + k_1 * cosine
    second_q, first_k = second_k, first_q  # right: q_0 * sine + q_1 * cosine, k_0 * cosine - k_1 * sine
    turned = joined(first_q, second_q, layout), joined(first_k, second_k, layout)
    return turned[0].astype(query.dtype), turned[1].astype(key.dtype)


@mutant("A019", operation="rotary_pair", evidence="inferred")
def entries_share_the_first_ones_positions(
    query: Array, key: Array, positions: Array, *, layout: str = "interleaved"
) -> Pair:
    """The table of angles is made for the first batch entry and serves all."""
    everybody = np.broadcast_to(positions[:1], positions.shape)  # right: positions
    return rotary_pair(query, key, everybody, layout=layout)
