"""Which array framework a function's code speaks of, as far as it shows without a call.

What is read: the names that its code uses, what its module gives them, its closure, its defaults and annotations, what it
wraps (`functools.partial`, `__wrapped__`, a bound method's object), and the same of the functions that it calls, two calls deep.
An adapter that imports nothing but its own package is followed into that package.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

FRAMEWORKS = ("numpy", "torch", "jax")
DEEPEST = 2  # calls that are followed: an adapter, and a function behind it
_PREFERRED = ("torch", "jax", "numpy")  # NumPy is the helper of the two others


def frameworks_used(function: Callable[..., Any]) -> tuple[str, ...]:
    """Every framework, the likeliest first: by its own code, else by that of what it calls, else by what its module imports."""
    level: list[Any] = [function]
    visited: set[int] = set()
    order: list[str] = []
    for _ in range(DEEPEST + 1):
        roots, called = _read(level, visited)
        order += [name for name in _PREFERRED if name in roots and name not in order]
        if order and set(order) != {"numpy"}:
            break
        level = called
    imported = {_root(value) for value in vars(_module(function)).values()} if _module(function) else set()
    order += [name for name in ("torch", "jax") if name in imported and not order]
    return (*order, *(name for name in FRAMEWORKS if name not in order))


def unwrapped(function: Any) -> Any:
    """The function behind `functools.partial` and bound methods, whose module is that of the code."""
    while True:
        inner = function.func if isinstance(function, functools.partial) else function
        inner = inner.__func__ if inspect.ismethod(inner) else inner
        if inner is function:
            return function
        function = inner


def _read(functions: list[Any], visited: set[int]) -> tuple[set[str], list[Any]]:
    """(roots of the modules that these functions speak of, the functions that they call)."""
    roots: set[str] = set()
    called: list[Any] = []
    while functions:
        function = functions.pop()
        if id(function) in visited:
            continue
        visited.add(id(function))
        roots.add(_root(function))
        behind, values = _parts(function)
        functions += behind
        for value in values:
            roots.add(value.partition(".")[0] if isinstance(value, str) else _root(value))
            if inspect.isfunction(value) or isinstance(value, functools.partial):
                called.append(value)
    return roots, called


def _parts(function: Any) -> tuple[list[Any], list[Any]]:
    """(functions that this one merely wraps, values that its code, closure, defaults and annotations speak of)."""
    behind = [
        inner
        for inner in (
            getattr(function, "func", None) if isinstance(function, functools.partial) else None,
            getattr(function, "__wrapped__", None),
            getattr(function, "__func__", None),
        )
        if inner is not None
    ]
    values: list[Any] = []
    if inspect.ismethod(function):
        values.append(function.__self__)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return behind, values
    names = set(_names(code))
    scope = getattr(function, "__globals__", {})
    used = [scope[name] for name in names if name in scope]
    for cell in function.__closure__ or ():
        try:
            used.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    behind += [value for value in used if inspect.isfunction(value) and value.__name__ == function.__name__]
    values += used
    values += [getattr(module, name) for module in used if inspect.ismodule(module) and _root(module) not in _PREFERRED
               for name in names if hasattr(module, name)]  # fmt: skip
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    values += [a for a in function.__annotations__.values() if not isinstance(a, str) or "." in a]
    values += [name for name in names if name.partition(".")[0] in FRAMEWORKS]  # imported inside
    return behind, values


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _root(value: Any) -> str:
    """The package that a value comes from: an instance counts for every class that it inherits from."""
    if inspect.ismodule(value):
        return value.__name__.partition(".")[0]
    if isinstance(value, str | int | float | bool | tuple | list | dict | None):
        return ""
    kinds = value.__mro__ if inspect.isclass(value) else type(value).__mro__
    modules = [getattr(value, "__module__", None), *(kind.__module__ for kind in kinds)]
    roots = ["torch" if root == "_C" else root for root in (str(m or "").partition(".")[0] for m in modules)]
    return next(({"jaxlib": "jax"}.get(root, root) for root in roots if root in (*FRAMEWORKS, "jaxlib")), "")


def _module(function: Any) -> ModuleType | None:
    return sys.modules.get(str(getattr(unwrapped(function), "__module__", "")))


def has_triton_kernels(function: Callable[..., Any]) -> bool:
    """Whether the function's module, or one below it where that is a package, has imported Triton by its name."""
    home = str(getattr(unwrapped(function), "__module__", ""))
    below = (module for name, module in [*sys.modules.items()] if name == home or name.startswith(f"{home}."))
    return any(hasattr(module, "triton") for module in below)
