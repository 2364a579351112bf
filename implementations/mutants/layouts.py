"""Strides: an array is read as it lies in memory, whatever view of it is handed over."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.memory import contiguous, read, strides_of
from qkverify.implementations.mutants.correct.planting import mutant


@mutant("B066", step="load_query", evidence="stated", threads="pytorch/pytorch#163597 pytorch/pytorch#163598")
def query_is_taken_for_contiguous(call: Call) -> np.ndarray:
    """Keys and values are read by their strides, the query as if it were contiguous."""
    return read(call.query, contiguous(call.query.shape))  # right: read(call.query, strides_of(call.query))


@mutant("B067", step="load_query", evidence="stated", threads="pytorch/pytorch#181133 pytorch/pytorch#181151")
def batch_stride_is_heads_times_head_stride(call: Call) -> np.ndarray:
    """A batch entry starts at b H times the stride of a head, as in the usual order of axes only."""
    _, head, row, column = strides_of(call.query)
    return read(call.query, (call.H * head, head, row, column))  # right: strides_of(call.query)


@mutant("B068", step="load_query", evidence="stated", threads="pytorch/pytorch#187504")
def innermost_stride_is_taken_for_one(call: Call) -> np.ndarray:
    """The D numbers of a query are taken to lie side by side."""
    return read(call.query, (*strides_of(call.query)[:3], 1))  # right: strides_of(call.query)


@mutant("B069", step="load_value", requires=("E == D",), evidence="partly", threads="ROCm/pytorch#3230")
def values_are_read_by_the_strides_of_the_keys(call: Call) -> np.ndarray:
    """The value array is read with the strides of the key array."""
    return read(call.value, strides_of(call.key))  # right: strides_of(call.value)


@mutant(
    "B139",
    step="load_key",
    evidence="stated",
    threads="Dao-AILab/flash-attention#2611 Dao-AILab/flash-attention#2260 thu-ml/SageAttention#386 "
    "fla-org/flash-linear-attention#1080 Dao-AILab/flash-attention#772",
)
def offsets_wrap(call: Call) -> np.ndarray:
    """row * stride is computed in too few bits. 16 here, so that it takes 2^15 elements and not 2^31."""
    return read(call.key, strides_of(call.key), index=np.int16)  # right: np.int64


@mutant("A053", step="load_key", evidence="inferred")
def stride_is_taken_for_positive(call: Call) -> np.ndarray:
    """A stride is kept in an unsigned number, its sign is lost: an axis that runs backward is read forward."""
    return read(
        call.key, tuple(abs(stride) for stride in strides_of(call.key))
    )  # right: strides_of(call.key)


@mutant("A055", step="load_key", evidence="inferred")
def rows_are_taken_not_to_overlap(call: Call) -> np.ndarray:
    """A row is taken to begin at least D numbers after the one before."""
    *outer, row, column = strides_of(call.key)
    apart = max(row, call.D) if column == 1 else row  # right: row
    return read(call.key, (*outer, apart, column))
