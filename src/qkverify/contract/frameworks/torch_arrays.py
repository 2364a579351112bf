"""PyTorch on the CPU and on CUDA. bfloat16 crosses to NumPy as 16-bit integers: NumPy's own bfloat16 is ml_dtypes'."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch

from qkverify import foreign_text
from qkverify.contract import messages, process_settings
from qkverify.contract.frameworks import numpy_arrays
from qkverify.contract.frameworks.views import owner_of
from qkverify.contract.process_settings import Setting

REFUSALS: tuple[type[BaseException], ...] = (NotImplementedError,)
MODES = ("", "", "no_grad", "inference_mode")  # in which a forward pass may run
WRITABLE = True  # on the CPU a tensor shares the memory of its array


def unavailable(device: str) -> str | None:
    return None if device == "cpu" or torch.cuda.is_available() else "no CUDA device"


def devices() -> dict[str, str | None]:
    return {device: unavailable(device) for device in ("cpu", "cuda")}


def from_numpy(array: Any, device: str = "cpu") -> torch.Tensor:
    """A tensor with the strides of `array`; on the CPU it shares the memory. What begins inside of a buffer has a storage offset.

    Strides below zero torch does not have: such an array is copied.
    """
    array = np.asarray(array)
    if array.size and min(array.strides, default=0) < 0:
        array = np.ascontiguousarray(array)
    if device != "cpu" or _begins_inside(array):
        return _with_strides(array, device)
    half = array.dtype == ml_dtypes.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # read-only arrays: that nothing is written is a law of its own
        tensor = torch.from_numpy(array.view(np.int16) if half else array)
    return tensor.view(torch.bfloat16) if half else tensor


def _begins_inside(array: np.ndarray) -> bool:
    """Whether an array does not begin where its buffer, an array of the same dtype, does."""
    root = owner_of(array)
    inside = array.size and root.dtype == array.dtype and root.flags.c_contiguous
    return bool(inside and array.__array_interface__["data"][0] != root.__array_interface__["data"][0])


def _with_strides(array: np.ndarray, device: str) -> torch.Tensor:
    """The whole buffer is sent, and the same view is taken of it there: what lies around the view travels too."""
    root = owner_of(array)
    if root.size == 0 or array.size == 0 or not root.flags.c_contiguous:
        return from_numpy(np.array(array)).to(device)
    offset = (array.__array_interface__["data"][0] - root.__array_interface__["data"][0]) // root.itemsize
    strides = [stride // array.itemsize for stride in array.strides]
    return from_numpy(root.reshape(-1)).to(device).as_strided(array.shape, strides, offset)


def filled(shape: tuple[int, ...], number: float, like: torch.Tensor) -> torch.Tensor:
    return like.new_full(shape, number)


def concatenated(arrays: Sequence[Any]) -> Any:
    return torch.cat(tuple(arrays))


def to_numpy(native: Any) -> np.ndarray:
    tensor = native.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())


def is_array(native: Any) -> bool:
    """Whether this is an array of the framework, exactly: what only looks like one may compute when it is read."""
    return type(native) is torch.Tensor


def dtype_of(native: Any) -> str:
    return str(native.dtype).removeprefix("torch.")


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(
        None if device.type == "cpu" else device
    )  # None costs nothing; "cpu" is asked at every call


_BACKENDS: Any = torch.backends.cuda  # which back ends of attention are allowed, on a CPU too
SETTINGS: tuple[Setting, ...] = (
    *numpy_arrays.SETTINGS,
    Setting("whether torch records gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's default device", torch.get_default_device, _set_default_device),
    Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch's autocast", partial(torch.is_autocast_enabled, "cpu"), partial(torch.set_autocast_enabled, "cpu")),
    Setting("torch's deterministic algorithms", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    Setting("torch's float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    *[Setting(f"torch's {name} attention", getattr(_BACKENDS, f"{name}_sdp_enabled"), getattr(_BACKENDS, f"enable_{name}_sdp"))
      for name in ("flash", "math", "mem_efficient", "cudnn")],
)  # fmt: skip


def global_state() -> dict[str, Any]:
    """What a call must leave as it was, by name: settings and generators of the process."""
    generator = torch.get_rng_state().numpy().tobytes()
    return {
        **numpy_arrays.global_state(),
        **process_settings.values(SETTINGS),
        "torch's random generator": generator,
    }


def restored() -> contextlib.AbstractContextManager[Any]:
    """A context that undoes what is done to settings inside: what is judged next must not be judged by it."""
    return process_settings.restored(SETTINGS)


def stir() -> None:
    """Move the generators on, from where a seed would put them: only so does one show that is set in every call."""
    numpy_arrays.stir()
    torch.rand(())


def overwrite(native: torch.Tensor, array: Any) -> bool:
    """Write other numbers into a tensor, as an optimizer does; False where it cannot be written."""
    try:
        with torch.no_grad():
            native.copy_(from_numpy(np.array(array)))
    except RuntimeError:  # several of its elements are one place in memory, or it is an inference tensor
        return False
    return True


def inference(mode: str = "no_grad") -> contextlib.AbstractContextManager[Any]:
    """A context in which nothing is kept for gradients, as where a model is served; "" changes nothing."""
    entered: contextlib.AbstractContextManager[Any] = (
        getattr(torch, mode)() if mode else contextlib.nullcontext()
    )
    return entered


def second(
    function: Callable[..., Any], inputs: Mapping[str, Any], upstream: Any, name: str, along: Any
) -> dict[str, Any]:
    """The gradients, by each input, of <gradient of the input `name`, along>. Raises NotImplementedError where torch cannot."""
    leaves = {key: x.detach().requires_grad_() for key, x in inputs.items()}
    output = function(**leaves)
    first = output[0] if isinstance(output, tuple) else output
    try:
        (slope,) = torch.autograd.grad(first, [leaves[name]], upstream, create_graph=True)
        gradients = torch.autograd.grad(slope, list(leaves.values()), along, allow_unused=True)
    except RuntimeError as error:
        raise NotImplementedError(f"no second derivative: {foreign_text.shown(error)}") from error
    return {
        key: torch.zeros_like(x) if g is None else g
        for (key, x), g in zip(leaves.items(), gradients, strict=True)
    }


def differentiable(native: torch.Tensor) -> bool:
    return native.requires_grad


def duplicate(native: torch.Tensor) -> torch.Tensor:
    """A copy that may be written in place; gradients go through it to the original."""
    return native.clone()


def vjp(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    upstream: Any,
    between: Callable[[], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The outputs and, for each input, upstream's product with the Jacobian. An input that has no influence gets zeros.

    Of a function that returns several arrays `upstream` belongs to the first, or, as a tuple, to all. `between` is called
    after the forward and before the backward pass.
    """
    pull = backward(function, inputs, upstream, keep=False)
    if between is not None:
        between()
    return pull()


def backward(
    function: Callable[..., Any], inputs: Mapping[str, Any], upstream: Any, *, keep: bool = True
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """The forward pass now; a call that makes the backward pass, as often as one likes if the graph is kept."""
    device = next(iter(inputs.values())).device.type
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    output = function(**leaves)
    above = upstream if isinstance(upstream, tuple) else (upstream,)
    pairs = list(zip(output if isinstance(output, tuple) else (output,), above, strict=False))
    # One of several that is cut off has no influence; where all are, torch says so.
    parts, given = zip(*([pair for pair in pairs if pair[0].requires_grad] or pairs), strict=True)
    cast = [(x if isinstance(x, torch.Tensor) else from_numpy(x, device)).to(part.dtype)
            for part, x in zip(parts, given, strict=True)]  # fmt: skip

    # Of no keys, or no features, an output need not depend on anything: `torch.zeros`, or a loop that is never entered.
    depends = any(part.requires_grad for part in parts) or all(x.numel() for x in leaves.values())

    def pull() -> tuple[Any, dict[str, Any]]:
        if not depends:
            return output, {name: torch.zeros_like(x) for name, x in leaves.items()}
        gradients = _gradients(parts, list(leaves.values()), cast, keep or None)
        grads = [
            torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), gradients, strict=True)
        ]
        return output, dict(zip(leaves, grads, strict=True))

    return pull


NEEDS_BACKWARD = "CheckpointFunctionBackward"  # reentrant checkpointing: torch's, Megatron's, DeepSpeed's


def _gradients(
    parts: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    above: Sequence[torch.Tensor],
    keep: bool | None,
) -> Sequence[torch.Tensor | None]:
    """The gradients of leaves that have none yet, by `torch.autograd.grad`, or by `.backward()` for what takes no other."""
    if not any(type(node).__name__ == NEEDS_BACKWARD for node in _nodes(parts)):
        try:
            return torch.autograd.grad(parts, leaves, above, allow_unused=True, retain_graph=keep)
        except RuntimeError as error:
            if ".grad()" not in str(error):
                raise
    messages.note("gradients are taken with .backward(), because torch.autograd.grad is refused")
    try:
        torch.autograd.backward(parts, above, retain_graph=keep)
        return [leaf.grad for leaf in leaves]
    finally:
        for leaf in leaves:
            leaf.grad = None


def _nodes(parts: Sequence[torch.Tensor]) -> Iterator[Any]:
    """Every node of the graph behind some tensors."""
    visited: set[Any] = set()
    waiting = [part.grad_fn for part in parts]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in visited:
            visited.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions]


def synchronise(device: str = "cpu") -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def lost(device: str = "cpu") -> str | None:
    """After an illegal access CUDA answers every later call of the process with the same error: that error's first line."""
    try:
        synchronise(device)
    except RuntimeError as error:
        return foreign_text.shown_line(str(error).partition("\n")[0])
    return None
