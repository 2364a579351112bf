"""NumPy: the arrays are what they are. Gradients come from the implementation's own vjp function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

REFUSALS: tuple[type[BaseException], ...] = (NotImplementedError,)
COMPILES = False
MODES = ("",)
WRITABLE = True


def unavailable(device: str) -> str | None:
    return None if device == "cpu" else "NumPy computes on the CPU only"


def devices() -> dict[str, str | None]:
    return {device: unavailable(device) for device in ("cpu", "cuda")}


def from_numpy(array: Any, device: str = "cpu") -> Any:
    return array


def to_numpy(native: Any) -> np.ndarray:
    return np.asarray(native)


def dtype_of(native: Any) -> str:
    return np.asarray(native).dtype.name


def global_state() -> tuple[Any, ...]:
    """What a call must leave as it was: settings and generators of the process."""
    return tuple(np.geterr().items()), repr(np.random.get_state())


def draw_once() -> None:
    """A generator that every call seeds anew stands, before a call, where the last one left it: unless somebody draws."""
    np.random.random()


def overwrite(native: np.ndarray, other: np.ndarray) -> None:
    native[...] = other


def inference(mode: str) -> contextlib.AbstractContextManager[Any]:
    """Outside of training: nothing to switch off."""
    return contextlib.nullcontext()


def differentiable(native: Any) -> bool:
    return False


def vjp(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    upstream: Any,
    between: Callable[[], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    raise NotImplementedError("NumPy has no automatic gradients: put attention_vjp beside attention")


def backward(
    function: Callable[..., Any], inputs: Mapping[str, Any], upstream: Any
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    raise NotImplementedError("NumPy has no automatic gradients, and so no backward pass by itself")


def synchronise(device: str = "cpu") -> None:
    """NumPy computes at once."""
