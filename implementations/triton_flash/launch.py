"""Starting a kernel: strides in units, compiled on a GPU, interpreted on a CPU."""

import contextlib
import threading
import warnings
from typing import Any

import numpy as np
import torch
import triton

from qkverify.implementations.triton_flash.constants import SIZE_LIMIT
from qkverify.implementations.triton_flash.interpreter import interpreted
from qkverify.implementations.triton_flash.tiles import Tiles


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
