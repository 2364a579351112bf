"""NumPy: the arrays are what they are. Gradients come from the implementation's own vjp function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.contract import process_settings

REFUSALS: tuple[type[BaseException], ...] = (NotImplementedError,)
MODES = ("",)
WRITABLE = True
SETTINGS = process_settings.OF_PYTHON


def unavailable(device: str) -> str | None:
    return None if device == "cpu" else "NumPy computes on the CPU only"


def devices() -> dict[str, str | None]:
    return {device: unavailable(device) for device in ("cpu", "cuda")}


def from_numpy(array: Any, device: str = "cpu") -> Any:
    return array


def filled(shape: tuple[int, ...], number: float, like: Any) -> Any:
    return np.full(shape, number, like.dtype)


def concatenated(arrays: Sequence[Any]) -> Any:
    return np.concatenate(arrays)


def to_numpy(native: Any) -> np.ndarray:
    return np.asarray(native)


def is_array(native: Any) -> bool:
    """Whether this is an array of the framework, exactly: what only looks like one may compute when it is read."""
    return type(native) is np.ndarray


def dtype_of(native: Any) -> str:
    return np.asarray(native).dtype.name


def global_state() -> dict[str, Any]:
    """What a call must leave as it was, by name: settings and generators of the process."""
    return {**process_settings.values(SETTINGS), "NumPy's random generator": repr(np.random.get_state())}


def restored() -> contextlib.AbstractContextManager[Any]:
    """A context that undoes what is done to settings inside: what is judged next must not be judged by it."""
    return process_settings.restored(SETTINGS)


def stir() -> None:
    """Move the generators on, from where a seed would put them: only so does one show that is set in every call."""
    np.random.random()


def overwrite(native: Any, array: Any) -> bool:
    """Write other numbers into an array, as its owner does; False where it cannot be written."""
    try:
        native[...] = array
    except ValueError:  # it is read-only
        return False
    return True


def inference(mode: str = "no_grad") -> contextlib.AbstractContextManager[Any]:
    """A context in which nothing is kept for gradients, as where a model is served: here nothing ever is."""
    return contextlib.nullcontext()


def differentiable(native: Any) -> bool:
    return False


def duplicate(native: Any) -> Any:
    return np.array(native)


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


def lost(device: str = "cpu") -> str | None:
    """A CPU that is lost takes its process with it."""
    return None


def synchronise(device: str = "cpu") -> None:
    """NumPy computes at once."""
