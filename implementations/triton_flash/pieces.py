"""Pieces of a kernel: products, views of a tensor, which keys a tile of queries sees."""

import triton
import triton.language as tl

from qkverify.implementations.triton_flash.constants import INFINITY, LOG2_E
from qkverify.implementations.triton_flash.primitives import (
    _index,
    _loaded,
    _mask,
    _pointers,
    _range,
    _rounded,
    _scalar,
)


@triton.jit
def _product(left, right):
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _add_product(total, left, right):
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _operand(tile, dtype: tl.constexpr):
    """float32 rounded to `dtype`, as it enters a matrix product."""
    return _loaded(_rounded(tile, dtype))


@triton.jit
def _highest(tile, AXIS: tl.constexpr):
    return tl.reduce(tile, AXIS, tl.standard._elementwise_max)


@triton.jit
def _sum_of_rows(tile):
    return tl.reduce(tile, 1, tl.standard._sum_combine)


@triton.jit
def _is_finite(tile):
    return tl.abs(tile.to(tl.float32)) < INFINITY


@triton.jit
def _all_finite(tile):
    return _scalar(_highest(_highest(tl.where(_is_finite(tile), 0, 1), 1), 0)) == 0


@triton.jit
def _finite_or_zero(tile):
    return tl.where(_is_finite(tile), tile, 0.0)


@triton.jit
def _tanh(x):
    """From exp2, which the interpreter has too; a series near zero, where 1 - exp2 would cancel."""
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    far = (1.0 - decay) / (1.0 + decay)
    square = x * x
    near = x * (1.0 - square * (0.33333333 - square * 0.13333333))
    return tl.where(square < 0.00390625, near, tl.where(x < 0, -far, far))


@triton.jit
def _view(tensor, strides, batch, head, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr):
    """The matrix of one head, rows of `size`, in tiles: (tensor, its start, step of a row, offsets in a tile, columns)."""
    rows = _range(ROWS)[:, None]
    columns = _range(COLUMNS)[None, :]
    start = (_index(batch) * _index(strides[0]) + _index(head) * _index(strides[1])) * UNIT
    step = _index(strides[2]) * UNIT
    if UNIT > 1:  # the last axis is contiguous, and 32 bits reach through a tile
        offsets = rows * (_scalar(strides[2]) * UNIT) + columns
    else:
        offsets = rows * step + columns * _index(strides[3])
    return tensor, start, step, offsets, columns < _scalar(size)


@triton.jit
def _own_strides(heads, rows, size, UNIT: tl.constexpr):
    """Of an output of ours, which is contiguous."""
    row = _index(size) // UNIT
    return _index(heads) * _index(rows) * row, _index(rows) * row, row, 1


@triton.jit
def _load(view, first, wanted, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile from row `first` on. Zero outside the `wanted` rows (looked at if ROWS) and the columns (if COLUMNS)."""
    tensor, start, step, offsets, columns = view
    pointers = _pointers(tensor, start + _index(first) * step, offsets)
    if ROWS and COLUMNS:
        tile = tl.load(pointers, mask=_mask(wanted[:, None] & columns), other=0.0)
    elif ROWS:
        tile = tl.load(pointers, mask=_mask(wanted[:, None]), other=0.0)
    elif COLUMNS:
        tile = tl.load(pointers, mask=_mask(columns), other=0.0)
    else:
        tile = tl.load(pointers)
    return _loaded(tile)


@triton.jit
def _store(view, first, wanted, tile):
    tensor, start, step, offsets, columns = view
    pointers = _pointers(tensor, start + _index(first) * step, offsets)
    tl.store(pointers, _rounded(tile, pointers.dtype.element_ty), mask=_mask(wanted[:, None] & columns))


@triton.jit
def _load_row(tensor, start, rows, wanted, other):
    return tl.load(_pointers(tensor, start, rows), mask=_mask(wanted), other=other)


@triton.jit
def _entry(batch, head, heads, queries):
    """Where the (B,H,Q) log-sum-exp or delta of one head starts."""
    return (_index(batch) * _index(heads) + _index(head)) * _index(queries)


@triton.jit
def _program(BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """(first row of the tile, head, batch entry). LAST_FIRST: under a causal mask the last queries have the most work."""
    tile = _scalar(tl.program_id(0))
    if LAST_FIRST:
        tile = _scalar(tl.num_programs(0)) - 1 - tile
    return tile * BLOCK, _scalar(tl.program_id(1)), _scalar(tl.program_id(2))


@triton.jit
def _length(lengths, length_stride, batch, keys):
    """Keys of this batch entry that are not padding."""
    length = _scalar(keys)
    if lengths is not None:
        given = tl.load(lengths + _index(batch) * _index(length_stride)).to(tl.int32)
        length = min(max(_scalar(given), 0), length)
    return length


@triton.jit
def _partners(first, last, below, above, end, BELOW: tl.constexpr, ABOVE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the positions first..last find their partners on the other axis, which ends at `end`.

    Position p has the partners p - below .. p + above. Returns (begin, inner_begin, inner_end, end): all partners lie in
    [begin, end); tiles of BLOCK in [inner_begin, inner_end) are partners of every position. No such tile:
    inner_begin >= inner_end. All but `end` are multiples of BLOCK.
    """
    begin = 0
    inner_begin = 0
    inner_end = end
    if BELOW:
        begin = max(first - below, 0) // BLOCK * BLOCK
        inner_begin = (max(last - below, 0) + BLOCK - 1) // BLOCK * BLOCK
    if ABOVE:
        inner_end = max(min(first + above + 1, end), 0)
        end = min(last + above + 1, end)
    return begin, inner_begin, inner_end // BLOCK * BLOCK, end


@triton.jit
def _part(bounds, PART: tl.constexpr):
    """What of the `bounds` from _partners a loop takes: 0 the edge before the inner tiles, 1 these, 2 the edge after."""
    begin, inner_begin, inner_end, end = bounds
    if PART == 0:
        return begin, min(inner_begin, end)
    elif PART == 1:
        return inner_begin, inner_end
    else:
        return max(inner_begin, inner_end), end


@triton.jit
def _between(positions, lowest, highest, LOW: tl.constexpr, HIGH: tl.constexpr):
    """lowest <= positions <= highest, one side or both."""
    if LOW and HIGH:
        return (positions >= lowest) & (positions <= highest)
    elif LOW:
        return positions >= lowest
    else:
        return positions <= highest
