"""JAX on the CPU (or its default device). Arrays have no strides and cannot be written; float64 needs jax_enable_x64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from qkverify.contract.frameworks.numpy_arrays import global_state as global_state
from qkverify.contract.frameworks.numpy_arrays import inference as inference
from qkverify.contract.frameworks.numpy_arrays import lost as lost
from qkverify.contract.frameworks.numpy_arrays import restored as restored
from qkverify.contract.frameworks.numpy_arrays import stir as stir

REFUSALS: tuple[type[BaseException], ...] = (NotImplementedError,)
MODES = ("",)
WRITABLE = False


def unavailable(device: str) -> str | None:
    if device == "cpu" or any(d.platform == "gpu" for d in jax.devices()):
        return None
    return "no CUDA device"


def devices() -> dict[str, str | None]:
    return {device: unavailable(device) for device in ("cpu", "cuda")}


def from_numpy(array: Any, device: str = "cpu") -> Any:
    target = jax.devices("gpu" if device == "cuda" else "cpu")[0]
    return jax.device_put(np.ascontiguousarray(array), target)


def filled(shape: tuple[int, ...], number: float, like: Any) -> Any:
    return jax.numpy.full(shape, number, like.dtype)


def concatenated(arrays: Sequence[Any]) -> Any:
    return jax.numpy.concatenate(arrays)


def to_numpy(native: Any) -> np.ndarray:
    return np.asarray(native)


def is_array(native: Any) -> bool:
    """Whether this is an array of the framework, exactly: what only looks like one may compute when it is read."""
    return isinstance(native, jax.Array) and type(native).__module__.partition(".")[0] in ("jax", "jaxlib")


def dtype_of(native: Any) -> str:
    return str(native.dtype)


def overwrite(native: Any, array: Any) -> bool:
    return False


def differentiable(native: Any) -> bool:
    """Of a result inside a function that is being differentiated: what `stop_gradient` lets through is no tracer any more."""
    return isinstance(native, jax.core.Tracer)


def duplicate(native: Any) -> Any:
    return native  # nothing is written in place


def vjp(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    upstream: Any,
    between: Callable[[], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    pull = backward(function, inputs, upstream)
    if between is not None:
        between()
    return pull()


def backward(
    function: Callable[..., Any], inputs: Mapping[str, Any], upstream: Any
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """The forward pass now; a call that makes the backward pass, as often as one likes."""
    names = list(inputs)
    above = upstream if isinstance(upstream, tuple) else (upstream,)

    def parts(*xs: Any) -> Any:
        output = function(**dict(zip(names, xs, strict=True)))
        return (output if isinstance(output, tuple) else (output,))[: len(above)]

    output, pull = jax.vjp(parts, *inputs.values())
    cast = tuple(jax.numpy.asarray(x, part.dtype) for part, x in zip(output, above, strict=True))
    returned = output if isinstance(upstream, tuple) else output[0]
    return lambda: (returned, dict(zip(names, pull(cast), strict=True)))


def second(
    function: Callable[..., Any], inputs: Mapping[str, Any], upstream: Any, name: str, along: Any
) -> dict[str, Any]:
    """The gradients, by each input, of <gradient of the input `name`, along>."""

    def slope(leaves: dict[str, Any]) -> Any:
        others = {key: x for key, x in leaves.items() if key != name}
        pull = jax.vjp(lambda x: _first(function(**others, **{name: x})), leaves[name])[1]
        return (pull(upstream)[0] * along).sum()

    return dict(jax.grad(slope)(dict(inputs)))


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def synchronise(device: str = "cpu") -> None:
    jax.effects_barrier()  # type: ignore[no-untyped-call]
