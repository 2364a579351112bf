"""What a mask, a length, a window or a bias hides."""

from __future__ import annotations

import numpy as np

from qkverify.problem.corners import Seen, corner


@corner
def row_without_keys(seen: Seen) -> bool:
    """0 / 0 in the softmax."""
    return not seen.problem.some_visible.all()


@corner
def mask_that_hides_the_first_half(seen: Seen) -> bool:
    """The first tiles hold -inf alone: -inf minus -inf. At least four keys."""
    mask = seen.problem.mask
    return (
        mask is not None
        and seen.sizes["K"] >= 4
        and mask.shape[-1] > 1
        and not mask[..., : mask.shape[-1] // 2].any()
    )


@corner
def mask_that_hides_the_last_half(seen: Seen) -> bool:
    """A mask that looks like padding. At least four keys."""
    mask = seen.problem.mask
    return (
        mask is not None
        and seen.sizes["K"] >= 4
        and mask.shape[-1] > 1
        and not mask[..., mask.shape[-1] // 2 :].any()
    )


@corner
def mask_of_blocks_of_64(seen: Seen) -> bool:
    """Constant inside blocks of 64 queries and 64 keys, and not the same everywhere: blocks are skipped whole."""
    mask = seen.problem.mask
    if mask is None or mask.ndim < 2 or min(mask.shape[-2:]) <= 64 or mask.all() or not mask.any():
        return False
    queries, keys = (np.arange(n) // 64 * 64 for n in mask.shape[-2:])
    return bool((mask == mask[..., queries[:, None], keys]).all())


@corner
def mask_broadcast_over_the_batch(seen: Seen) -> bool:
    """One mask for several sequences."""
    mask = seen.problem.mask
    return mask is not None and seen.sizes["B"] > 1 and (mask.ndim < 4 or mask.shape[0] == 1)


@corner
def mask_of_each_head(seen: Seen) -> bool:
    """A mask with an axis of several heads."""
    mask = seen.problem.mask
    return mask is not None and mask.ndim >= 3 and mask.shape[-3] > 1


@corner
def mask_with_causality(seen: Seen) -> bool:
    """Two conditions at once."""
    return {"mask", "causal"} <= seen.options.keys()


@corner
def window_with_lengths(seen: Seen) -> bool:
    """A window near the end of a padded sequence."""
    return {"window", "key_lengths"} <= seen.options.keys()


@corner
def sequence_of_length_zero(seen: Seen) -> bool:
    """A batch entry without keys."""
    lengths = seen.problem.key_lengths
    return lengths is not None and bool((lengths == 0).any())


@corner
def infinity_in_a_bias(seen: Seen) -> bool:
    """-inf hides a key."""
    return seen.bias is not None and bool(np.isneginf(seen.bias).any())


@corner
def row_of_infinity_in_a_bias(seen: Seen) -> bool:
    """A bias hides every key of a query."""
    return seen.bias is not None and bool(np.isneginf(seen.bias).all(-1).any())


@corner
def first_half_of_a_bias_is_infinite(seen: Seen) -> bool:
    """The first tiles hold -inf alone, by the bias. At least four keys."""
    bias = seen.bias
    if bias is None or bias.shape[-1] < 4:
        return False
    half = bias.shape[-1] // 2
    return bool((np.isneginf(bias[..., :half]).all(-1) & np.isfinite(bias[..., half:]).any(-1)).any())


@corner
def finite_bias_that_hides(seen: Seen) -> bool:
    """-100, -1e4, the lowest number: some keys of a row at -100 and below, others not."""
    bias = seen.bias
    if bias is None:
        return False
    hidden = ((bias <= -100.0) & np.isfinite(bias)).any(-1)
    return bool((hidden & (bias > -50.0).any(-1)).any())


@corner
def bias_that_shifts_a_row(seen: Seen) -> bool:
    """Every key of a row at 100 and above, or at -100 and below: the softmax is the same."""
    bias = seen.bias
    if bias is None:
        return False
    return bool(
        np.isfinite(bias).all(-1).any() and ((bias <= -100.0).all(-1) | (bias >= 100.0).all(-1)).any()
    )
