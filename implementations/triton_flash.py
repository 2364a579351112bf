"""Flash attention in Triton: one forward and three backward kernels, compiled on CUDA, interpreted on a CPU.

Rules that the kernels keep:

- Every tensor is read through its own strides, the upstream gradient too; nothing is copied to be contiguous. Offsets
  are 64-bit. Where all pointers and strides are multiples of 16 bytes, strides travel in `UNIT`s of that many elements,
  so that the compiler may use vector loads without a compilation per stride.
- Causality, windows and lengths are one thing: query i sees the keys [i + K - Q - left, i + K - Q + right] below its
  batch entry's length (causal is right = 0: aligned bottom-right). Tiles of keys outside are skipped, tiles inside need
  no mask, and only the tiles on an edge compute one.
- Keys and values that no query of a tile sees are never loaded. Those that only its other queries see are, on an edge,
  and a matrix product would turn their NaN into everyone's (0 * NaN). So a result that is not finite is computed once
  more, by `CAREFUL` loops: there NaN reaches the rows that see it and no others. Finite rows come out bit-equal.
- Accumulators are float32. Weights and their gradients are rounded to the input dtype before each matrix product.
  Exponentials are base 2 with log2(e) folded into the scale. The backward is that of FlashAttention-2
  (https://arxiv.org/abs/2307.08691): weights from the stored log-sum-exp, delta from the stored output.
- No atomics: one program owns each output tile, and dK and dV are summed over the queries of all heads of their group
  in registers. So results are deterministic, and an entry does not depend on the rest of its batch.

On a CPU the same source is run by Triton's interpreter. Its usual switch, TRITON_INTERPRET=1, is one decision for the
whole process, taken before anybody imports triton. Here `interpreted` makes the second form of a kernel itself, so both
forms live side by side and the order of imports does not matter. It replaces eight small device functions
(`INTERPRETERS_OWN`). Positions, offsets and masks become Python numbers and NumPy arrays, because the interpreter takes
a tenth of a millisecond for each operation on its own; they become Triton's where memory is read or a tile is masked.
And bfloat16 is widened before a product and rounded by ml_dtypes, because the interpreter's tl.dot multiplies the bit
patterns of bfloat16 and its cast truncates. All else, and so the logic, is the same. While it runs, the interpreter
patches triton.language: on a CPU, call from one thread at a time.
"""

import contextlib
import functools
import inspect
import threading
import types
import warnings
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

from qkverify import UnsupportedCase, implementation

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = 0.6931471805599453
LOWEST = tl.constexpr(-3.4028234663852886e38)  # a running maximum starts here: finite, so no inf - inf occurs
INFINITY = tl.constexpr(float("inf"))
SMALLEST_SCALE = 2.0**-126  # float32's smallest normal number; what lies below is zero
SIZE_LIMIT = 256  # of D and E: tiles of longer rows do not fit shared memory
GRID_LIMIT = 65535  # of B and H: CUDA's second and third grid axes

# Numbers of which another value is no other compilation; Triton would compile again for 1 and for multiples of 16. The
# strides among them are named by tensor and axis: query, key, value, upstream; batch, head, row, column.
NUMBERS = [tensor + axis for tensor in "qkvu" for axis in "bhrc"] + ["lb", "lh", "lr", "length_stride"]
NUMBERS += ["heads", "group", "queries", "keys", "key_size", "value_size", "left", "right"]


def kernel(function):
    names = inspect.signature(function).parameters
    return triton.jit(function, do_not_specialize=[name for name in NUMBERS if name in names])


# -- What differs under the interpreter --------------------------------------------------------------------------------


@triton.jit
def _scalar(x):
    return x


@triton.jit
def _index(x):
    return tl.cast(x, tl.int64)


@triton.jit
def _range(BLOCK: tl.constexpr):
    return tl.arange(0, BLOCK)


@triton.jit
def _smaller(x, y):
    return tl.minimum(x, y)


@triton.jit
def _mask(x):
    return x


@triton.jit
def _pointers(tensor, start, offsets):
    return tensor + start + offsets


@triton.jit
def _loaded(tile):
    return tile


@triton.jit
def _rounded(tile, dtype: tl.constexpr):
    """float32 rounded to `dtype`, as it is stored."""
    return tile.to(dtype)


def _tensor(array, dtype):
    return tl.tensor(TensorHandle(array, dtype), tl.block_type(dtype, list(array.shape)))


def _number(x):
    return x.handle.data.item() if isinstance(x, tl.tensor) else x


def _widened(tile):
    if tile.dtype == tl.bfloat16:
        return _tensor(tile.handle.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)
    return tile if tile.dtype == tl.float32 else tile.to(tl.float32)


def _rounded_to_nearest(tile, dtype):
    if dtype == tl.bfloat16:
        return _tensor(tile.handle.data.astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)
    return tile if dtype == tl.float32 else tile.to(dtype)


INTERPRETERS_OWN = {
    "_scalar": _number,
    "_index": _number,
    "_range": np.arange,
    "_smaller": np.minimum,
    "_mask": lambda x: _tensor(x, tl.int1),
    "_pointers": lambda tensor, start, offsets: tensor + _tensor(start + offsets, tl.int64),
    "_loaded": _widened,
    "_rounded": _rounded_to_nearest,
}


class _Interpreted(InterpretedFunction):
    def rewrite(self):  # it would turn each number that is assigned to a name into a tensor
        return self.fn


@functools.cache
def interpreted(function: types.FunctionType) -> InterpretedFunction:
    """A kernel as Triton's interpreter runs it, among copies of its module's device functions as plain Python."""
    namespace = dict(function.__globals__)
    for name, value in list(namespace.items()):
        if isinstance(getattr(value, "fn", None), types.FunctionType):
            namespace[name] = types.FunctionType(value.fn.__code__, namespace, name)
            namespace[name].__annotations__ = value.fn.__annotations__
    namespace.update(INTERPRETERS_OWN)
    return _Interpreted(namespace[function.__name__])


# -- Pieces of a kernel ------------------------------------------------------------------------------------------------


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


# -- Forward -----------------------------------------------------------------------------------------------------------


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


# -- Backward ----------------------------------------------------------------------------------------------------------


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


# -- Launching ---------------------------------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """Queries and keys of a tile, warps that share a program, copies of a tile in shared memory, and the most registers of
    a thread (None: as the compiler likes).

    With two copies the next tile is only asked for once the products of this one are issued, and waited for at once: it
    takes three to hide a load.
    """

    queries: int
    keys: int
    warps: int = 4
    stages: int = 1
    registers: int | None = None


INTERPRETED = Tiles(32, 32)  # small, so that small problems have edges, inner tiles and tiles to skip
PLAIN = {2: Tiles(32, 32, 4), 4: Tiles(32, 32, 8)}  # by bytes of a number, for any GPU and any strides
PLAIN_LONG = Tiles(16, 16, 4)  # for float32 heads of 256, whose products fill the registers
SHARED_MEMORY = 227 * 1024  # bytes that one program may take on Hopper: HOPPER needs no more

# (kernel, padded head size, whether keys end at a diagonal) -> tiles for 16-bit numbers in aligned memory. Chosen from the
# machine code for sm_90: loops over inner tiles that spill no accumulator and issue their wgmma asynchronously. The two
# kinds of masks are apart because the CAREFUL loops, which only the second has, take registers from the others.
# `python -m qkverify.benchmarks.tiles` measures the choice on such a GPU and prints this table anew.
HOPPER = {
    ("forward", 64, False): Tiles(128, 64, 4, 3),
    ("forward", 64, True): Tiles(128, 64, 4, 3),
    ("forward", 128, False): Tiles(128, 128, 8, 3),
    ("forward", 128, True): Tiles(128, 128, 8, 3),
    ("forward", 256, False): Tiles(64, 64, 8, 3),
    ("forward", 256, True): Tiles(64, 64, 8, 3),
    ("queries", 64, False): Tiles(128, 64, 4, 3),
    ("queries", 64, True): Tiles(128, 64, 4, 3),
    ("queries", 128, False): Tiles(128, 64, 8, 3),
    ("queries", 128, True): Tiles(128, 64, 8, 3),
    ("queries", 256, False): Tiles(64, 32, 8, 2),
    ("queries", 256, True): Tiles(64, 32, 8, 2),
    ("keys", 64, False): Tiles(64, 128, 8, 3),
    ("keys", 64, True): Tiles(64, 128, 8, 3),
    ("keys", 128, False): Tiles(32, 128, 8, 3),
    ("keys", 128, True): Tiles(32, 128, 8, 3),
    ("keys", 256, False): Tiles(32, 64, 8, 2),
    ("keys", 256, True): Tiles(32, 64, 8, 2),
}


def compiled_tiles(part: str, itemsize: int, block: int, hopper: bool, diagonal: bool) -> Tiles:
    """`hopper`: aligned memory, and shared memory as Hopper's. `diagonal`: the keys that a query sees end with the query."""
    if hopper and itemsize == 2:
        return HOPPER[part, block, diagonal]
    return PLAIN_LONG if itemsize > 2 and block > 128 else PLAIN[itemsize]


def _tiles(part: str, query: torch.Tensor, flags: dict[str, Any], unit: int) -> Tiles:
    if query.device.type != "cuda":
        return INTERPRETED
    hopper = unit > 1 and _shared_memory(query.device) >= SHARED_MEMORY
    block = max(flags["BLOCK_D"], flags["BLOCK_E"])
    return compiled_tiles(part, query.element_size(), block, hopper, flags["RIGHT"])


@functools.cache
def _shared_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _padded(size: int, device: torch.device) -> int:
    """The block that holds a head size: a power of two, and no less than a tensor core wants (or few compilations)."""
    return max(64 if device.type == "cuda" else 16, triton.next_power_of_2(size))


def _strides(*tensors: torch.Tensor, own: tuple[torch.Tensor, ...] = ()) -> tuple[int, list[int]]:
    """UNIT, and all strides of `tensors` in UNITs: 16 bytes if those and `own` are multiples of them, else one number."""
    width = 16 // tensors[0].element_size()
    aligned = all(
        tensor.data_ptr() % 16 == 0
        and (tensor.stride(-1) == 1 or tensor.shape[-1] <= 1)
        and all(step % width == 0 for size, step in zip(tensor.shape[:-1], tensor.stride()) if size > 1)
        and tensor.stride(2) < 2**31 // SIZE_LIMIT  # so that 32 bits reach through a tile
        for tensor in (*tensors, *own)
    )
    unit = width if aligned else 1
    return unit, [step // unit if size > 1 else 0 for t in tensors for size, step in zip(t.shape, t.stride())]


INTERPRETER = threading.Lock()  # it replaces functions of triton.language while it runs: one kernel at a time


@contextlib.contextmanager
def _quiet():
    """The interpreter computes with NumPy, which warns where a GPU gives inf or NaN in silence."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def launch_options(tile: Tiles) -> dict[str, Any]:
    """What the compiler is told beside a kernel's own arguments."""
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return options | ({} if tile.registers is None else {"maxnreg": tile.registers})


def _launch(
    kernel: Any, grid: tuple[int, int, int], tile: Tiles, arguments: tuple[Any, ...], **flags: Any
) -> None:
    """Run a kernel over a grid, compiled where its first argument is on a GPU, else interpreted."""
    if 0 in grid:
        return
    device = arguments[0].device
    if device.type == "cuda" and isinstance(kernel, triton.JITFunction):
        with torch.cuda.device(device):
            kernel[grid](*arguments, **flags, **launch_options(tile))
    else:
        with _quiet(), INTERPRETER:
            interpreted(kernel.fn)[grid](*arguments, **flags)


class Settings(NamedTuple):
    """What a call computes, beside its tensors. None: no bound, no cap. `scale` is positive."""

    scale: float
    left: int | None
    right: int | None
    softcap: float | None
    return_lse: bool


def _shared(query: torch.Tensor, value: torch.Tensor, settings: Settings) -> tuple[tuple[Any, ...], ...]:
    """(sizes, (factor, slope), flags): arguments that the three large kernels have in common."""
    _, heads, queries, key_size = query.shape
    _, key_heads, keys, value_size = value.shape
    far = queries + keys  # no distance is longer, and sums of positions stay in 32 bits
    sides = (settings.left, settings.right)
    left, right = (0 if side is None else max(-far, min(side, far)) for side in sides)
    sizes = (heads, heads // max(key_heads, 1), queries, keys, key_size, value_size, left, right)
    cap = settings.softcap
    curve = ((cap or settings.scale) * LOG2_E.value, settings.scale / cap if cap else 0.0)
    block_d, block_e = (_padded(size, query.device) for size in (key_size, value_size))
    flags = {
        "LEFT": settings.left is not None, "RIGHT": settings.right is not None, "SOFTCAP": bool(cap),
        "EVEN": (block_d, block_e) == (key_size, value_size), "BLOCK_D": block_d, "BLOCK_E": block_e,
    }  # fmt: skip
    return sizes, curve, flags


class FlashAttention(torch.autograd.Function):
    """(output, log-sum-exp or None) of query, key, value, lengths, settings."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, settings):
        ctx.set_materialize_grads(False)
        batch, heads, queries, _ = query.shape
        output = query.new_empty((batch, heads, queries, value.shape[-1]))
        lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=query.device)
        sizes, curve, flags = _shared(query, value, settings)
        unit, strides = _strides(query, key, value, own=(output,))
        tile = _tiles("forward", query, flags, unit)
        length_stride = 0 if lengths is None else lengths.stride(0)
        _launch(
            forward_kernel, (triton.cdiv(queries, tile.queries), heads, batch), tile,
            (query, key, value, output, lse, lengths, *strides, length_stride, *sizes, *curve),
            UNIT=unit, BLOCK_M=tile.queries, BLOCK_N=tile.keys, **flags,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, output, lse, lengths)
        ctx.settings = settings
        return output, lse * LN_2 if settings.return_lse else None

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, lse_upstream):
        query, key, value, output, lse, lengths = ctx.saved_tensors
        if upstream is None:
            upstream = output.new_zeros(()).expand(output.shape)
        delta = _delta(output, upstream, lse_upstream)
        tensors = (query, key, value, upstream, lse, delta)
        d_query = _query_gradient(*tensors, lengths, ctx.settings) if ctx.needs_input_grad[0] else None
        d_key = d_value = None
        if any(ctx.needs_input_grad[1:3]):
            d_key, d_value = _key_value_gradient(*tensors, lengths, ctx.settings)
        return d_query, d_key, d_value, None, None


def _delta(output, upstream, lse_upstream):
    batch, heads, queries, size = output.shape
    delta = torch.empty((batch, heads, queries), dtype=torch.float32, device=output.device)
    unit, strides = _strides(upstream, own=(output,))
    block = _padded(size, output.device)
    tile = INTERPRETED if output.device.type != "cuda" else Tiles(64, 0)
    lse_strides = (0, 0, 0) if lse_upstream is None else lse_upstream.stride()
    _launch(
        delta_kernel, (triton.cdiv(queries, tile.queries), heads, batch), tile,
        (output, upstream, lse_upstream, delta, *strides, *lse_strides, heads, queries, size),
        UNIT=unit, EVEN=block == size, BLOCK_M=tile.queries, BLOCK_E=block,
    )  # fmt: skip
    return delta


def _query_gradient(query, key, value, upstream, lse, delta, lengths, settings):
    d_query = query.new_empty(query.shape)
    sizes, curve, flags = _shared(query, value, settings)
    unit, strides = _strides(query, key, value, upstream, own=(d_query,))
    tile = _tiles("queries", query, flags, unit)
    length_stride = 0 if lengths is None else lengths.stride(0)
    _launch(
        query_gradient_kernel, (triton.cdiv(query.shape[2], tile.queries), query.shape[1], query.shape[0]), tile,
        (query, key, value, upstream, lse, delta, d_query, lengths, *strides, length_stride, *sizes,
         settings.scale, *curve),
        UNIT=unit, BLOCK_M=tile.queries, BLOCK_N=tile.keys, **flags,
    )  # fmt: skip
    return d_query


def _key_value_gradient(query, key, value, upstream, lse, delta, lengths, settings):
    d_key, d_value = key.new_empty(key.shape), value.new_empty(value.shape)
    sizes, curve, flags = _shared(query, value, settings)
    unit, strides = _strides(query, key, value, upstream, own=(d_key, d_value))
    tile = _tiles("keys", query, flags, unit)
    length_stride = 0 if lengths is None else lengths.stride(0)
    _launch(
        key_value_gradient_kernel, (triton.cdiv(key.shape[2], tile.keys), key.shape[1], key.shape[0]), tile,
        (query, key, value, upstream, lse, delta, d_key, d_value, lengths, *strides, length_stride, *sizes,
         settings.scale, *curve),
        UNIT=unit, BLOCK_M=tile.queries, BLOCK_N=tile.keys, GROUPED=query.shape[1] != key.shape[1], **flags,
    )  # fmt: skip
    return d_key, d_value


# -- The implementation ------------------------------------------------------------------------------------------------


def unavailable(device: str) -> str | None:
    """Why this device cannot run the kernels, or None. A CPU always can: through the interpreter."""
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return "needs a GPU of compute capability 8.0: bfloat16 products"
    return None


def _check(query, key, value, key_lengths) -> None:
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value have 4 axes, not {query.ndim}, {key.ndim} and {value.ndim}")
    (batch, heads, _, size), (_, key_heads, keys, _) = query.shape, key.shape
    if key.shape != (batch, key_heads, keys, size) or value.shape[:3] != key.shape[:3]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise ValueError(f"query (B,H,Q,D), key (B,G,K,D) and value (B,G,K,E) do not fit together: {shapes}")
    if heads % max(key_heads, 1):
        raise ValueError(f"{heads} query heads cannot share {key_heads} key/value heads evenly")
    if not query.dtype == key.dtype == value.dtype or not query.device == key.device == value.device:
        raise ValueError("query, key and value have one dtype and one device")
    if key_lengths is not None and key_lengths.shape != (batch,):
        raise ValueError(f"key_lengths has shape ({batch},), not {tuple(key_lengths.shape)}")
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UnsupportedCase(f"computes in float32, float16 and bfloat16, not {query.dtype}")
    if max(size, value.shape[-1]) > SIZE_LIMIT:
        raise UnsupportedCase(f"head sizes D = {size} and E = {value.shape[-1]}: the limit is {SIZE_LIMIT}")
    if max(batch, heads) > GRID_LIMIT:
        raise UnsupportedCase(f"B = {batch} and H = {heads}: the limit is {GRID_LIMIT}")


@implementation(
    name="triton_flash",
    summary="one Triton kernel, forward and backward; interpreted on a CPU",
    effort={"cpu": 0.1},  # the interpreter takes a tenth of a second for a small call
    arrays="torch",
    dtypes=("float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
    requires=(f"D <= {SIZE_LIMIT}", f"E <= {SIZE_LIMIT}", f"B <= {GRID_LIMIT}", f"H <= {GRID_LIMIT}"),
    precision={"float16": "fused", "bfloat16": "fused"},
    available=unavailable,
    tile=(INTERPRETED.queries,),
    causal_alignment="bottom-right",
    empty_rows="zero",
    masked_values="ignored",
    deterministic=True,
    batch_invariant=True,
    delta="output",
    lse="natural",
    lse_gradient=False,
)
def attention(
    query, key, value, *,
    causal=False, window=None, scale=None, softcap=None, key_lengths=None, return_lse=False,
):  # fmt: skip
    """Flash attention in one Triton kernel, with its gradients.

    query (B,H,Q,D), key (B,G,K,D), value (B,G,K,E), any strides; float32, float16 or bfloat16; D, E <= 256. Query head h
    reads head h // (H // G). causal is aligned bottom-right. window (left, right), None = unbounded. key_lengths (B,),
    int. Returns (B,H,Q,E) in the dtype of query, with return_lse also the natural log-sum-exp (B,H,Q) in float32.
    Raises ValueError for shapes that do not fit, UnsupportedCase for sizes and dtypes that are not offered.
    """
    _check(query, key, value, key_lengths)
    left, right = window if window is not None else (None, None)
    if causal:
        right = 0 if right is None else min(right, 0)
    scale = (query.shape[-1] or 1) ** -0.5 if scale is None else float(scale)
    if scale < SMALLEST_SCALE:  # the kernels take the largest product for the largest score
        query, scale = (query * -1.0, -scale) if scale <= -SMALLEST_SCALE else (query * 0.0, 1.0)
    if softcap is not None:
        softcap = abs(float(softcap))
        softcap = softcap if 0 < softcap < float("inf") else None
    settings = Settings(scale, left, right, softcap, return_lse)
    output, lse = FlashAttention.apply(query, key, value, key_lengths, settings)
    return (output, lse) if return_lse else output
