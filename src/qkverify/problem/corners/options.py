"""Options of unusual values, and together."""

from __future__ import annotations

from qkverify.problem.corners import Seen, corner


@corner(needs="no upstream")
def negative_scale(seen: Seen) -> bool:
    """The largest product is the smallest score."""
    return seen.problem.scale is not None and seen.problem.scale < 0


@corner
def tiny_scale(seen: Seen) -> bool:
    """All scores are nearly 0."""
    return seen.problem.scale is not None and 0 < abs(seen.problem.scale) < 1e-3


@corner
def softcap_with_a_bias(seen: Seen) -> bool:
    """Which comes first?"""
    return {"softcap", "bias"} <= seen.options.keys()


@corner
def softcap_with_a_mask(seen: Seen) -> bool:
    """tanh of a hidden score is no longer -inf."""
    return "softcap" in seen.options and not seen.problem.visible.all()


@corner
def sinks_with_a_row_without_keys(seen: Seen) -> bool:
    """The sink takes all."""
    return seen.problem.sinks is not None and not seen.problem.some_visible.all()


@corner
def sinks_with_grouped_heads(seen: Seen) -> bool:
    """A sink for each query head, not for each key head."""
    return seen.problem.sinks is not None and seen.problem.group > 1


@corner
def slopes_with_unequal_lengths(seen: Seen) -> bool:
    """Distances count from the aligned position."""
    return seen.problem.alibi_slopes is not None and seen.sizes["Q"] != seen.sizes["K"]


@corner
def bias_broadcast_over_the_queries(seen: Seen) -> bool:
    """Its gradient is a sum over queries."""
    bias = seen.problem.bias
    return bias is not None and seen.sizes["Q"] > 1 and (bias.ndim < 2 or bias.shape[-2] == 1)


@corner
def bias_of_each_head(seen: Seen) -> bool:
    """A bias with an axis of several heads."""
    bias = seen.problem.bias
    return bias is not None and bias.ndim >= 3 and bias.shape[-3] > 1


@corner
def window_narrower_than_a_tile_in_several_tiles(seen: Seen) -> bool:
    """Whole tiles lie outside of the window."""
    window = seen.problem.window
    return (
        window is not None and seen.sizes["K"] > 64 and any(side is not None and side < 32 for side in window)
    )


@corner
def six_options_and_more(seen: Seen) -> bool:
    """Combinations."""
    return len(seen.options) >= 6
