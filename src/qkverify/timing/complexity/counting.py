"""Operations, counted on the code that is timed.

NumPy: the layer is called with `Counted` arrays, which compute as ever and count every matrix product on the way. torch: its own
counter of floating-point operations (torch.utils.flop_counter), two to a multiply-add.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.timing.complexity.layer import Layer, Sizes


class Counted(np.ndarray):
    """An array that adds the multiply-adds of its products to `tally[0]`, and so does what comes of it."""

    tally: list[int]

    @classmethod
    def of(cls, array: np.ndarray, tally: list[int]) -> Counted:
        counted = array.view(cls)
        counted.tally = tally
        return counted

    def __array_finalize__(self, source: Any) -> None:
        self.tally = getattr(source, "tally", [0])

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            self.tally[0] += int(np.size(result)) * plain[0].shape[-1]
        return Counted.of(np.asarray(result), self.tally)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        result = super().__array_function__(function, types, args, options)
        return Counted.of(result, self.tally) if isinstance(result, np.ndarray) else result


def multiply_adds(layer: Layer, framework: str, inputs: tuple[Any, ...], sizes: Sizes) -> int:
    """Multiply-adds of all matrix products in one call of the layer, on native inputs."""
    if framework == "numpy":
        tally = [0]
        layer.numpy(*(Counted.of(x, tally) for x in inputs), sizes)
        return tally[0]
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        layer.torch(*inputs, sizes)
    return int(counter.get_total_flops()) // 2
