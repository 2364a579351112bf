"""Whether torch code that is given float64 goes on in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operation made float32 of float64."""

    narrowed: bool = False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if torch.float64 in _dtypes((args, kwargs)) and torch.float32 in _dtypes(result):
            self.narrowed = True
        return result


def narrows(function: Callable[[], object]) -> bool:
    """Whether a call makes a float32 tensor of a float64 one. What the call raises, it raises."""
    watching = _Watching()  # type: ignore[no-untyped-call]
    with watching:
        function()
    return bool(watching.narrowed)


def _dtypes(value: Any) -> set[torch.dtype]:
    return {tensor.dtype for tensor in _tensors(value)}


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
