"""The backward kernels: delta, the gradient of the queries, those of the keys and values."""

import triton
import triton.language as tl

from qkverify.implementations.triton_flash.constants import INFINITY, kernel
from qkverify.implementations.triton_flash.pieces import (
    _add_product,
    _all_finite,
    _between,
    _entry,
    _finite_or_zero,
    _length,
    _load,
    _load_row,
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
from qkverify.implementations.triton_flash.primitives import (
    _index,
    _mask,
    _pointers,
    _range,
    _scalar,
    _smaller,
)


@kernel
def delta_kernel(
    output, upstream, lse_upstream, delta, ub, uh, ur, uc, lb, lh, lr, heads, queries, value_size,
    UNIT: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO * O) - dL, with dL the upstream gradient of the log-sum-exp."""
    first, head, batch = _program(BLOCK_M, False)
    rows = _range(BLOCK_M) + first
    inside = rows < _scalar(queries)
    strides = _own_strides(heads, queries, value_size, UNIT)
    output_view = _view(output, strides, batch, head, value_size, BLOCK_M, BLOCK_E, UNIT)
    upstream_view = _view(upstream, (ub, uh, ur, uc), batch, head, value_size, BLOCK_M, BLOCK_E, UNIT)
    output_tile = _load(output_view, first, inside, True, not EVEN).to(tl.float32)
    result = _sum_of_rows(output_tile * _load(upstream_view, first, inside, True, not EVEN).to(tl.float32))
    if lse_upstream is not None:
        start = _index(batch) * _index(lb) + _index(head) * _index(lh)
        result -= _load_row(lse_upstream, start, rows * _index(lr), inside, 0.0)
    entry = _entry(batch, head, heads, queries)
    tl.store(_pointers(delta, entry, rows), result, mask=_mask(inside))


@triton.jit
def _weights_and_change(scores, value_products, lse, delta, factor, slope, SOFTCAP: tl.constexpr):
    """Weights P = exp(S - lse), and dS = P * (dP - delta) with respect to the unscaled products of queries and keys."""
    if SOFTCAP:
        scores = _tanh(scores * slope)
        weights = tl.exp2(scores * factor - lse)
        return weights, weights * (value_products - delta) * (1.0 - scores * scores)
    else:
        weights = tl.exp2(scores * factor - lse)
        return weights, weights * (value_products - delta)


@triton.jit
def _sum_over_keys(
    total, query_tile, upstream_tile, lse_rows, delta_rows, lowest, highest, key, value, begin, end, low, high,
    factor, slope,
    LEFT: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """total + dS @ K over the key tiles that start in [begin, end); the rest as in _attend."""
    columns = _range(BLOCK_N)
    for start in tl.range(begin, end, BLOCK_N, num_stages=1 if CAREFUL else None):
        positions = columns + start
        wanted = _between(positions, low, high - 1, LEFT, True)
        key_tile = _load(key, start, wanted, EDGE, not EVEN)
        value_tile = _load(value, start, wanted, EDGE, not EVEN)
        _, change = _weights_and_change(
            _product(query_tile, tl.trans(key_tile)), _product(upstream_tile, tl.trans(value_tile)),
            lse_rows[:, None], delta_rows[:, None], factor, slope, SOFTCAP,
        )  # fmt: skip
        if EDGE:
            visible = _between(positions[None, :], lowest[:, None], highest[:, None], LEFT, True)
            change = tl.where(_mask(visible), change, 0.0)
        if CAREFUL:
            key_tile = _finite_or_zero(key_tile)  # a row that sees such a key has NaN in `change`
        total = _add_product(total, _operand(change, dtype), key_tile)
    return total


@kernel
def query_gradient_kernel(
    query, key, value, upstream, lse, delta, output, lengths,
    qb, qh, qr, qc, kb, kh, kr, kc, vb, vh, vr, vc, ub, uh, ur, uc, length_stride,
    heads, group, queries, keys, key_size, value_size, left, right, scale, factor, slope,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Program (tile of queries, head, batch entry): its rows of dQ."""
    first, head, batch = _program(BLOCK_M, True)
    last = min(first + BLOCK_M, _scalar(queries)) - 1
    length = _length(lengths, length_stride, batch, keys)
    before = _scalar(queries) - _scalar(keys) + _scalar(left)
    after = _scalar(keys) - _scalar(queries) + _scalar(right)
    bounds = _partners(first, last, before, after, length, LEFT, RIGHT, BLOCK_N)
    rows = _range(BLOCK_M) + first
    inside = rows < _scalar(queries)
    lowest = rows - before
    highest = _smaller(rows + after, length - 1) if RIGHT else rows * 0 + (length - 1)
    query_view = _view(query, (qb, qh, qr, qc), batch, head, key_size, BLOCK_M, BLOCK_D, UNIT)
    upstream_view = _view(upstream, (ub, uh, ur, uc), batch, head, value_size, BLOCK_M, BLOCK_E, UNIT)
    key_head = head // _scalar(group)
    key_view = _view(key, (kb, kh, kr, kc), batch, key_head, key_size, BLOCK_N, BLOCK_D, UNIT)
    value_view = _view(value, (vb, vh, vr, vc), batch, key_head, value_size, BLOCK_N, BLOCK_E, UNIT)
    query_tile = _load(query_view, first, inside, True, not EVEN)
    upstream_tile = _load(upstream_view, first, inside, True, not EVEN)
    entry = _entry(batch, head, heads, queries)
    lse_rows = _load_row(lse, entry, rows, inside, INFINITY)
    delta_rows = _load_row(delta, entry, rows, inside, 0.0)
    nothing = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    total = nothing
    for PART in tl.static_range(0 if LEFT else 1, 3):
        begin, end = _part(bounds, PART)
        total = _sum_over_keys(
            total, query_tile, upstream_tile, lse_rows, delta_rows, lowest, highest, key_view, value_view, begin, end,
            first - before, bounds[3], factor, slope,
            LEFT, SOFTCAP, EVEN, BLOCK_N, PART != 1, False, key.dtype.element_ty,
        )  # fmt: skip
    if LEFT or RIGHT:
        if not _all_finite(total):
            total = _sum_over_keys(
                nothing, query_tile, upstream_tile, lse_rows, delta_rows, lowest, highest, key_view, value_view,
                bounds[0], bounds[3], first - before, bounds[3], factor, slope,
                LEFT, SOFTCAP, EVEN, BLOCK_N, True, True, key.dtype.element_ty,
            )  # fmt: skip
    strides = _own_strides(heads, queries, key_size, UNIT)
    output_view = _view(output, strides, batch, head, key_size, BLOCK_M, BLOCK_D, UNIT)
    _store(output_view, first, inside, total * scale)


@triton.jit
def _sum_over_queries(
    key_total, value_total, key_tile, value_tile, lowest, highest, query, upstream, lse, delta, entry, begin, split, skip,
    end, queries, factor, slope,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """key_total + dS^T @ Q and value_total + P^T @ dO over the query tiles in [begin, split) and [split + skip, end).

    Rows of tiles are keys here, and each is seen by its queries lowest..highest. Only on an edge may a query be past the
    last one: log-sum-exp +inf gives it weight zero.
    """
    offsets = _range(BLOCK_M)
    for step in tl.range(begin, end - skip, BLOCK_M, num_stages=1 if CAREFUL else None):
        start = step
        if EDGE:
            start = step + skip * (step >= split)
        rows = offsets + start
        inside = rows < _scalar(queries)
        query_tile = _load(query, start, inside, EDGE, not EVEN)
        upstream_tile = _load(upstream, start, inside, EDGE, not EVEN)
        if EDGE:
            lse_rows = _load_row(lse, entry, rows, inside, INFINITY)
            delta_rows = _load_row(delta, entry, rows, inside, 0.0)
        else:
            lse_rows = tl.load(_pointers(lse, entry, rows))
            delta_rows = tl.load(_pointers(delta, entry, rows))
        weights, change = _weights_and_change(
            _product(key_tile, tl.trans(query_tile)), _product(value_tile, tl.trans(upstream_tile)),
            lse_rows[None, :], delta_rows[None, :], factor, slope, SOFTCAP,
        )  # fmt: skip
        if CAREFUL:  # NaN in the upstream gradient of a row is in its delta, and in `change`
            weights += delta_rows[None, :] * 0.0
            upstream_tile = _finite_or_zero(upstream_tile)
            query_tile = _finite_or_zero(query_tile)
        if EDGE and (LEFT or RIGHT):
            visible = _between(rows[None, :], lowest[:, None], highest[:, None], RIGHT, LEFT)
            weights = tl.where(_mask(visible), weights, 0.0)
            change = tl.where(_mask(visible), change, 0.0)
        value_total = _add_product(value_total, _operand(weights, dtype), upstream_tile)
        key_total = _add_product(key_total, _operand(change, dtype), query_tile)
    return key_total, value_total


@triton.jit
def _sum_over_heads(
    key_tile, value_tile, inside, lowest, highest, query, upstream, lse, delta, query_strides, upstream_strides, batch,
    key_head, heads, group, queries, key_size, value_size, bounds, factor, slope,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, GROUPED: tl.constexpr,
    CAREFUL: tl.constexpr,
):  # fmt: skip
    """(dS^T @ Q, P^T @ dO) of a tile of keys, over the queries of all heads that read it."""
    key_total = tl.full([BLOCK_N, BLOCK_D], 0.0, tl.float32)
    value_total = tl.full([BLOCK_N, BLOCK_E], 0.0, tl.float32)
    begin, inner_begin, inner_end, end = bounds
    # A loop that surely has one turn is none: the registers that it would hold for its next turn are free.
    for member in range(_scalar(group) if GROUPED else 1):
        head = key_head * _scalar(group) + member
        entry = _entry(batch, head, heads, queries)
        query_view = _view(query, query_strides, batch, head, key_size, BLOCK_M, BLOCK_D, UNIT)
        upstream_view = _view(upstream, upstream_strides, batch, head, value_size, BLOCK_M, BLOCK_E, UNIT)
        split = end if CAREFUL else min(inner_begin, end)
        skip = 0 if CAREFUL else max(inner_end - split, 0)
        key_total, value_total = _sum_over_queries(
            key_total, value_total, key_tile, value_tile, lowest, highest, query_view, upstream_view, lse, delta, entry,
            begin, split, skip, end, queries, factor, slope,
            LEFT, RIGHT, SOFTCAP, EVEN, BLOCK_M, True, CAREFUL, query.dtype.element_ty,
        )  # fmt: skip
        if not CAREFUL:
            key_total, value_total = _sum_over_queries(
                key_total, value_total, key_tile, value_tile, lowest, highest, query_view, upstream_view, lse, delta, entry,
                inner_begin, inner_end, 0, inner_end, queries, factor, slope,
                LEFT, RIGHT, SOFTCAP, EVEN, BLOCK_M, False, False, query.dtype.element_ty,
            )  # fmt: skip
    # Padding in the tile has gathered weights against keys of zero.
    wanted = _mask(inside[:, None])
    return tl.where(wanted, key_total, 0.0), tl.where(wanted, value_total, 0.0)


@kernel
def key_value_gradient_kernel(
    query, key, value, upstream, lse, delta, key_output, value_output, lengths,
    qb, qh, qr, qc, kb, kh, kr, kc, vb, vh, vr, vc, ub, uh, ur, uc, length_stride,
    heads, group, queries, keys, key_size, value_size, left, right, scale, factor, slope,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    GROUPED: tl.constexpr,
):  # fmt: skip
    """Program (tile of keys, key/value head, batch entry): its rows of dK and dV, over all query heads of the group."""
    first, key_head, batch = _program(BLOCK_N, False)
    length = _length(lengths, length_stride, batch, keys)
    last = min(first + BLOCK_N, length) - 1
    # Key j is seen by the queries j - before .. j + after.
    before = _scalar(keys) - _scalar(queries) + _scalar(right)
    after = _scalar(queries) - _scalar(keys) + _scalar(left)
    limit = _scalar(queries)
    if first >= length:  # a tile of padding: no query sees it
        limit = 0
    bounds = _partners(first, last, before, after, limit, RIGHT, LEFT, BLOCK_M)
    positions = _range(BLOCK_N) + first
    inside = positions < length
    key_view = _view(key, (kb, kh, kr, kc), batch, key_head, key_size, BLOCK_N, BLOCK_D, UNIT)
    value_view = _view(value, (vb, vh, vr, vc), batch, key_head, value_size, BLOCK_N, BLOCK_E, UNIT)
    key_tile = _load(key_view, first, inside, True, not EVEN)
    value_tile = _load(value_view, first, inside, True, not EVEN)
    key_total, value_total = _sum_over_heads(
        key_tile, value_tile, inside, positions - before, positions + after, query, upstream, lse, delta, (qb, qh, qr, qc),
        (ub, uh, ur, uc), batch, key_head, heads, group, queries, key_size, value_size, bounds, factor, slope,
        LEFT, RIGHT, SOFTCAP, UNIT, EVEN, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_E, GROUPED, False,
    )  # fmt: skip
    if LEFT or RIGHT:
        if not (_all_finite(key_total) and _all_finite(value_total)):
            key_total, value_total = _sum_over_heads(
                key_tile, value_tile, inside, positions - before, positions + after, query, upstream, lse, delta,
                (qb, qh, qr, qc), (ub, uh, ur, uc), batch, key_head, heads, group, queries, key_size, value_size, bounds,
                factor, slope,
                LEFT, RIGHT, SOFTCAP, UNIT, EVEN, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_E, GROUPED, True,
            )  # fmt: skip
    inside = positions < _scalar(keys)
    group_heads = _scalar(heads) // _scalar(group)
    strides = _own_strides(group_heads, keys, key_size, UNIT)
    key_output_view = _view(key_output, strides, batch, key_head, key_size, BLOCK_N, BLOCK_D, UNIT)
    _store(key_output_view, first, inside, key_total * scale)
    value_output_view = _view(
        value_output,
        _own_strides(group_heads, keys, value_size, UNIT),
        batch,
        key_head,
        value_size,
        BLOCK_N,
        BLOCK_E,
        UNIT,
    )
    _store(value_output_view, first, inside, value_total)
