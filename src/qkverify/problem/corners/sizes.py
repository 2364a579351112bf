"""Sizes at which a tile, a vector or a special case begins."""

from __future__ import annotations

from qkverify.problem.corners import Seen, corner


@corner
def one_query(seen: Seen) -> bool:
    """A decoding step: kernels have a path of its own for it."""
    return seen.sizes["Q"] == 1


@corner
def one_key(seen: Seen) -> bool:
    """The softmax of one score."""
    return seen.sizes["K"] == 1


@corner
def more_queries_than_keys(seen: Seen) -> bool:
    """Bottom-right causality leaves rows without keys."""
    return seen.sizes["Q"] > seen.sizes["K"]


@corner
def keys_end_in_half_a_tile_of_128(seen: Seen) -> bool:
    """K = 64 mod 128: the last tile is half full."""
    return seen.sizes["K"] % 128 == 64


@corner
def one_key_past_a_tile_of_64(seen: Seen) -> bool:
    """K = 1 mod 64, above 64."""
    return seen.sizes["K"] > 64 and seen.sizes["K"] % 64 == 1


@corner
def one_query_past_a_tile_of_64(seen: Seen) -> bool:
    """Q = 1 mod 64, above 64."""
    return seen.sizes["Q"] > 64 and seen.sizes["Q"] % 64 == 1


@corner
def more_than_1024_keys(seen: Seen) -> bool:
    """The keys are split over blocks."""
    return seen.sizes["K"] > 1024


@corner
def more_than_1024_queries(seen: Seen) -> bool:
    """The queries are many tiles."""
    return seen.sizes["Q"] > 1024


@corner
def head_size_of_one(seen: Seen) -> bool:
    """D = 1: a vector shorter than any register."""
    return seen.sizes["D"] == 1


@corner
def head_size_of_zero(seen: Seen) -> bool:
    """D = 0: every score is 0, and 1 / sqrt(D) is no number."""
    return seen.sizes["D"] == 0


@corner
def value_size_of_zero(seen: Seen) -> bool:
    """E = 0: the output is empty."""
    return seen.sizes["E"] == 0


@corner
def odd_head_size(seen: Seen) -> bool:
    """D odd, above 1: a tail after whole vectors."""
    return seen.sizes["D"] > 1 and seen.sizes["D"] % 2 == 1


@corner
def head_size_above_128(seen: Seen) -> bool:
    """More than most kernels are tuned for."""
    return seen.sizes["D"] > 128


@corner
def value_size_differs(seen: Seen) -> bool:
    """E other than D."""
    return seen.sizes["D"] != seen.sizes["E"]


@corner
def grouped_heads(seen: Seen) -> bool:
    """Several query heads read one key head."""
    return seen.problem.group > 1


@corner
def heads_not_a_power_of_two(seen: Seen) -> bool:
    """H of 3, 5, 6 and so on: a shift in place of a division is wrong."""
    return bool(seen.sizes["H"] & (seen.sizes["H"] - 1))


@corner
def sixteen_heads_and_more(seen: Seen) -> bool:
    """More heads than a small table holds."""
    return seen.sizes["H"] >= 16


@corner
def large_scores_with_a_mask_or_bias(seen: Seen) -> bool:
    """Q x K of 16,384 and more together with a mask or a bias: blocks of it are loaded."""
    return seen.sizes["Q"] * seen.sizes["K"] >= 16_384 and bool({"mask", "bias"} & seen.options.keys())
