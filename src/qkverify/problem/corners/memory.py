"""How arrays lie in memory: what reads them as if they were contiguous is wrong."""

from __future__ import annotations

import numpy as np

from qkverify.problem.corners import Seen, corner


def _contiguous(x: np.ndarray | None) -> bool:
    return x is None or bool(x.flags.c_contiguous)


def _strides(x: np.ndarray) -> list[int]:
    """In numbers, of the axes longer than one."""
    return [stride // x.itemsize for stride, n in zip(x.strides, x.shape, strict=True) if n > 1]


@corner
def strided_query(seen: Seen) -> bool:
    """The query is a view."""
    return not _contiguous(seen.arrays["query"])


@corner
def strided_key(seen: Seen) -> bool:
    """The key is a view."""
    return not _contiguous(seen.arrays["key"])


@corner
def strided_value(seen: Seen) -> bool:
    """The value is a view."""
    return not _contiguous(seen.arrays["value"])


@corner
def strided_mask(seen: Seen) -> bool:
    """The mask is a view."""
    return not _contiguous(seen.arrays.get("mask"))


@corner
def strided_bias(seen: Seen) -> bool:
    """The bias is a view."""
    return not _contiguous(seen.arrays.get("bias"))


@corner(needs="upstream")
def strided_upstream(seen: Seen) -> bool:
    """The upstream gradient is a view."""
    return not _contiguous(seen.arrays.get("upstream"))


@corner
def strided_lengths(seen: Seen) -> bool:
    """The lengths are a view."""
    return not _contiguous(seen.arrays.get("key_lengths"))


@corner
def strided_slopes_or_sinks(seen: Seen) -> bool:
    """The slopes or the sinks are a view."""
    return not _contiguous(seen.arrays.get("alibi_slopes")) or not _contiguous(seen.arrays.get("sinks"))


@corner
def array_that_begins_inside_a_buffer(seen: Seen) -> bool:
    """Contiguous, but not at the start of its memory."""
    return any(
        x.flags.c_contiguous and isinstance(x.base, np.ndarray)
        and x.__array_interface__["data"][0] > x.base.__array_interface__["data"][0]
        for x in seen.arrays.values()
    )  # fmt: skip


@corner
def last_axis_not_adjacent(seen: Seen) -> bool:
    """The numbers of a query, key or value do not lie side by side."""
    arrays = (seen.arrays[name] for name in ("query", "key", "value"))
    return any(x.shape[-1] > 1 and x.strides[-1] != x.itemsize for x in arrays)


@corner
def negative_stride(seen: Seen) -> bool:
    """An axis runs backward through the memory."""
    return any(stride < 0 for x in seen.arrays.values() for stride in _strides(x))


@corner
def overlapping_rows(seen: Seen) -> bool:
    """Rows of a query, key or value that share numbers, as a sliding window over a sequence has."""
    arrays = (seen.arrays[name] for name in ("query", "key", "value"))
    return any(
        x.size and min(x.shape[-2:]) > 1 and 0 < abs(x.strides[-2]) < x.shape[-1] * abs(x.strides[-1]) and
        0 < abs(x.strides[-1]) < x.shape[-2] * abs(x.strides[-2])
        for x in arrays
        if abs(x.strides[-1]) <= abs(x.strides[-2]) < x.shape[-1] * abs(x.strides[-1])
    )  # fmt: skip


@corner
def query_key_and_value_in_three_layouts(seen: Seen) -> bool:
    """The strides of one do not tell those of another."""
    layouts = [seen.problem.layouts.get(name, "contiguous") for name in ("query", "key", "value")]
    return len(set(layouts)) == 3
