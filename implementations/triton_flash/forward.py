"""The forward kernel: online softmax over tiles of keys."""

import triton
import triton.language as tl

from qkverify.implementations.triton_flash.constants import INFINITY, LOWEST, kernel
from qkverify.implementations.triton_flash.pieces import (
    _add_product,
    _all_finite,
    _between,
    _entry,
    _finite_or_zero,
    _highest,
    _is_finite,
    _length,
    _load,
    _operand,
    _own_strides,
    _part,
    _partners,
    _product,
    _program,
    _store,
    _sum_of_rows,
    _tanh,
    _view,
)
from qkverify.implementations.triton_flash.primitives import _mask, _pointers, _range, _scalar, _smaller


@triton.jit
def _attend(
    state, query_tile, lowest, highest, key, value, begin, end, low, high, factor, slope,
    LEFT: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Online softmax over the key tiles that start in [begin, end), where each query sees its keys lowest..highest.

    [low, high) are the keys that any of the queries sees: no other is loaded.
    """
    total, normaliser, peak = state
    columns = _range(BLOCK_N)
    for start in tl.range(begin, end, BLOCK_N, num_stages=1 if CAREFUL else None):
        positions = columns + start
        wanted = _between(positions, low, high - 1, LEFT, True)
        scores = _product(query_tile, tl.trans(_load(key, start, wanted, EDGE, not EVEN)))
        if SOFTCAP:
            scores = _tanh(scores * slope)  # the cap itself is in `factor`
        if EDGE:
            visible = _between(positions[None, :], lowest[:, None], highest[:, None], LEFT, True)
            scores = tl.where(_mask(visible), scores, -INFINITY)
        new_peak = tl.maximum(peak, _highest(scores, 1) * factor)
        weights = tl.exp2(scores * factor - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        normaliser = normaliser * decay + _sum_of_rows(weights)
        peak = new_peak
        total = total * decay[:, None]
        weights = _operand(weights, dtype)
        value_tile = _load(value, start, wanted, EDGE, not EVEN)
        if CAREFUL:
            total = _add_product(total, weights, _finite_or_zero(value_tile))
            bad = tl.where(_is_finite(value_tile), 0.0, 1.0).to(weights.dtype)
            reached = _product(tl.where(_mask(visible), 1.0, 0.0).to(weights.dtype), bad)
            total = tl.where(reached > 0, float("nan"), total)
        else:
            total = _add_product(total, weights, value_tile)
    return total, normaliser, peak


@kernel
def forward_kernel(
    query, key, value, output, lse, lengths, qb, qh, qr, qc, kb, kh, kr, kc, vb, vh, vr, vc, length_stride,
    heads, group, queries, keys, key_size, value_size, left, right, factor, slope,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Program (tile of queries, head, batch entry): its output rows, and their log-sum-exp in base 2."""
    first, head, batch = _program(BLOCK_M, True)
    last = min(first + BLOCK_M, _scalar(queries)) - 1
    length = _length(lengths, length_stride, batch, keys)
    before = _scalar(queries) - _scalar(keys) + _scalar(left)  # query i sees the keys i - before .. i + after
    after = _scalar(keys) - _scalar(queries) + _scalar(right)
    bounds = _partners(first, last, before, after, length, LEFT, RIGHT, BLOCK_N)
    rows = _range(BLOCK_M) + first
    inside = rows < _scalar(queries)
    lowest = rows - before
    highest = _smaller(rows + after, length - 1) if RIGHT else rows * 0 + (length - 1)
    query_view = _view(query, (qb, qh, qr, qc), batch, head, key_size, BLOCK_M, BLOCK_D, UNIT)
    key_head = head // _scalar(group)
    key_view = _view(key, (kb, kh, kr, kc), batch, key_head, key_size, BLOCK_N, BLOCK_D, UNIT)
    value_view = _view(value, (vb, vh, vr, vc), batch, key_head, value_size, BLOCK_N, BLOCK_E, UNIT)
    query_tile = _load(query_view, first, inside, True, not EVEN)
    nothing = (
        tl.full([BLOCK_M, BLOCK_E], 0.0, tl.float32),
        tl.full([BLOCK_M], 0.0, tl.float32),
        tl.full([BLOCK_M], LOWEST, tl.float32),
    )
    state = nothing
    for PART in tl.static_range(0 if LEFT else 1, 3):
        begin, end = _part(bounds, PART)
        state = _attend(
            state, query_tile, lowest, highest, key_view, value_view, begin, end, first - before, bounds[3], factor, slope,
            LEFT, SOFTCAP, EVEN, BLOCK_N, PART != 1, False, key.dtype.element_ty,
        )  # fmt: skip
    total, normaliser, peak = state
    if LEFT or RIGHT:
        if not _all_finite(total):
            total, normaliser, peak = _attend(
                nothing, query_tile, lowest, highest, key_view, value_view, bounds[0], bounds[3], first - before, bounds[3],
                factor, slope, LEFT, SOFTCAP, EVEN, BLOCK_N, True, True, key.dtype.element_ty,
            )  # fmt: skip
    total = total / tl.where(normaliser == 0, 1.0, normaliser)[:, None]  # an empty row stays zero
    entry = _entry(batch, head, heads, queries)
    tl.store(_pointers(lse, entry, rows), peak + tl.log2(normaliser), mask=_mask(inside))
    strides = _own_strides(heads, queries, value_size, UNIT)
    output_view = _view(output, strides, batch, head, value_size, BLOCK_M, BLOCK_E, UNIT)
    _store(output_view, first, inside, total)
