"""Device functions that Triton's interpreter replaces: see `interpreter`."""

import triton
import triton.language as tl


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
