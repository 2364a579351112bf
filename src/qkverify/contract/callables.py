"""The kinds of callables beside plain functions: how their parameters are read, and what is said of those that are not taken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from qkverify.errors import UsageError

# Packages whose arrays are not taken: (what makes one of their arrays out of `x`, what makes a NumPy array of it again).
FOREIGN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "tinygrad": ("tinygrad.Tensor({})", "{}.numpy()"),
        "mlx": ("mlx.core.array({})", "numpy.array({})"),
        "tensorflow": ("tensorflow.constant({})", "{}.numpy()"),
        "cupy": ("cupy.asarray({})", "cupy.asnumpy({})"),
        "paddle": ("paddle.to_tensor({})", "{}.numpy()"),
        "mindspore": ("mindspore.Tensor({})", "{}.asnumpy()"),
    }
)


def behind(function: Any) -> Any:
    """What shows the parameters of a callable: of a custom operator of PyTorch its Python function, of a module its forward."""
    function = getattr(function, "_init_fn", function)  # torch.library.custom_op
    return getattr(function, "forward", function)


def schema_of(function: Any) -> dict[str, inspect.Parameter] | None:
    """The parameters of an operator of PyTorch (`torch.ops.namespace.name`) by its schema, of its default overload if it has
    several; None for all else."""
    overload = function
    if hasattr(function, "overloads"):
        names = function.overloads()
        overload = getattr(function, "default" if "default" in names else names[0])
    arguments = getattr(getattr(overload, "_schema", None), "arguments", None)
    if arguments is None:
        return None
    return {x.name: _parameter(x) for x in arguments}


def _parameter(argument: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    has_default = argument.has_default_value()
    return inspect.Parameter(
        argument.name, kind, default=argument.default_value if has_default else inspect.Parameter.empty
    )


def check_method(function: Any, owner: Any, target: str) -> None:
    """Raise UsageError for a method that is taken off its class, unless its `self` is the query of a method of arrays."""
    if not (inspect.isclass(owner) and inspect.isfunction(inspect.unwrap(function))):
        return
    names = list(inspect.signature(function).parameters)
    method = not isinstance(inspect.getattr_static(owner, function.__name__, None), staticmethod)
    if not method or not names or [name[0].lower() for name in names[1:3]] == ["k", "v"]:
        return
    name = function.__name__
    raise UsageError(
        f"{target} is a method, and a method needs an instance of its class\n"
        f"  write `{name} = {owner.__name__}(...).{name}` into the file, with what yours is made with, and verify FILE:{name}"
    )


def check_arrays(function: Callable[..., Any], target: str, names: list[str]) -> None:
    """Raise UsageError for a function of a package whose arrays are not taken."""
    module = str(getattr(function, "__module__", None) or "") or target.partition(":")[0]
    package = next(
        (name for name in (module, target.partition(":")[0]) if name.partition(".")[0] in FOREIGN), ""
    )
    if not package:
        return
    package = package.partition(".")[0]
    made, back = FOREIGN[package]
    place, _, attribute = target.rpartition(":")
    rest = ", ".join(made.format(name) for name in ("query", "key", "value")[: max(len(names), 1)])
    root = f"{package}.core" if package == "mlx" else package
    call = back.format(
        f"{place}.{attribute}({rest}{', scale=query.shape[-1] ** -0.5' if 'scale' in names[:4] else ''})"
    )
    imports = ", ".join(dict.fromkeys((root, place, *(["numpy"] if "numpy." in call else []))))
    raise UsageError(
        f"{target} takes arrays of {package}; those of numpy, torch and jax are known. These two lines give it NumPy arrays:\n"
        f"    import {imports}\n"
        f"    def attention(query, key, value): return {call}"
    )
