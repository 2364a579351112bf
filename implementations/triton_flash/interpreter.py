"""The kernels as Triton's interpreter runs them, on a CPU.

Its usual switch, TRITON_INTERPRET=1, is one decision for the whole process, taken before anybody imports triton. Here
`interpreted` makes the second form of a kernel itself, so both forms live side by side and the order of imports does not matter.
It replaces eight small device functions (`INTERPRETERS_OWN`). Positions, offsets and masks become Python numbers and NumPy
arrays, because the interpreter takes a tenth of a millisecond for each operation on its own; they become Triton's where memory
is read or a tile is masked. And bfloat16 is widened before a product and rounded by ml_dtypes, because the interpreter's tl.dot
multiplies the bit patterns of bfloat16 and its cast truncates. All else, and so the logic, is the same. While it runs, the
interpreter patches triton.language: on a CPU, call from one thread at a time.
"""

import functools
import types

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

from qkverify.implementations.triton_flash import pieces, primitives


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
    """A kernel as Triton's interpreter runs it, among copies of all device functions as plain Python."""
    namespace = {**vars(primitives), **vars(pieces), **function.__globals__}
    for name, value in list(namespace.items()):
        if isinstance(getattr(value, "fn", None), types.FunctionType):
            namespace[name] = types.FunctionType(value.fn.__code__, namespace, name)
            namespace[name].__annotations__ = value.fn.__annotations__
    namespace.update(INTERPRETERS_OWN)
    return _Interpreted(namespace[function.__name__])
