"""A GPU's matrix unit and its exp as Triton gives them to a kernel: `tl.dot` by each of its precisions, `tl.exp`, `tl.exp2`.

torch's products choose their kernels by themselves; here there is nothing between the probe and the unit but the
compiler. `tl.exp` multiplies by log2 e and takes the special function unit's ex2.approx, as flash kernels do.
Needs Triton and a GPU, or the interpreter (TRITON_INTERPRET=1), which computes in NumPy.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

Array = np.ndarray
TILE, STEP = 64, 64


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _dot(  # type: ignore[no-untyped-def]
    a, b, out, columns, LENGTH: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr
):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    cols = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    # LENGTH is a constant because Triton 3.6's interpreter, with NumPy 2.4, counts to no other number.
    for start in range(0, LENGTH, STEP):
        inner = start + tl.arange(0, STEP)
        left = tl.load(a + rows[:, None] * LENGTH + inner[None, :])
        right = tl.load(b + inner[:, None] * columns + cols[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(out + rows[:, None] * columns + cols[None, :], total)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _exp(x, out, count, BLOCK: tl.constexpr, BASE_2: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.load(x + at, mask=at < count, other=0.0)
    result = tl.exp2(numbers * 1.4426950408889634) if BASE_2 else tl.exp(numbers)
    tl.store(out + at, result, mask=at < count)


def product(dtype: Any, device: str, precision: str) -> Any:
    """`tl.dot` summed in float32 over the inner length, as a unit for `precision_probes`; its results are float32."""
    return partial(_multiply, dtype, device, precision)


def _multiply(dtype: Any, device: str, precision: str, a: Array, b: Array) -> Array:
    rows, columns = a.shape[0], b.shape[1]
    a = np.pad(a, ((0, -rows % TILE), (0, -a.shape[1] % STEP)))
    b = np.pad(b, ((0, -b.shape[0] % STEP), (0, -columns % TILE)))
    left, right = (torch.from_numpy(np.ascontiguousarray(x)).to(dtype).to(device) for x in (a, b))
    out = torch.zeros(a.shape[0], b.shape[1], device=device)
    grid = (a.shape[0] // TILE, b.shape[1] // TILE)
    _dot[grid](left, right, out, b.shape[1], a.shape[1], TILE, STEP, precision)
    return np.asarray(out.double().cpu().numpy())[:rows, :columns]


def exp(device: str, *, base_2: bool, x: Array) -> Array:
    """`tl.exp` in float32, or `tl.exp2` of the number times log2 e."""
    there = torch.from_numpy(x).float().to(device)
    out = torch.zeros_like(there)
    _exp[(triton.cdiv(there.numel(), 1024),)](there, out, there.numel(), 1024, base_2)
    return np.asarray(out.double().cpu().numpy())
