"""Numbers that the kernels share, and which arguments of a kernel are no reason to compile it again."""

import inspect

import triton
import triton.language as tl

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
