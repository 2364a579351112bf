"""What torch's autograd calls: one launch forward, three backward."""

from typing import Any, NamedTuple

import torch
import triton
from torch.autograd.function import once_differentiable

from qkverify.implementations.triton_flash.backward import (
    delta_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
)
from qkverify.implementations.triton_flash.constants import LN_2, LOG2_E
from qkverify.implementations.triton_flash.forward import forward_kernel
from qkverify.implementations.triton_flash.launch import _launch, _padded, _strides
from qkverify.implementations.triton_flash.tiles import INTERPRETED, Tiles, _tiles


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
